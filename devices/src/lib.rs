//! Device models: what a guest sees. Knows no KVM.
