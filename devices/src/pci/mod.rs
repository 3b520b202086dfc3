//! The PCI bus: configuration space, BARs, MSI-X, and the root through which vCPUs reach devices.
