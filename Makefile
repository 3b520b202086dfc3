# What people do with this tree. `make` alone lists it.

.DEFAULT_GOAL := help
SKIPPED := $(CURDIR)/target/skipped-tests
.PHONY: help demo test guests check measure hooks build lab lab-zfs sim chaos cycles thin crash bench bench-gate bench-trims clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: build lab ## Boot a Debian guest that writes a file, reboots and finds it again
	@cargo run --quiet --package lab --bin demo

test: build lab ## Run the tests: unit, property, hostile driver, real guests
	@resources/tests/host-packages.sh
	@mkdir -p $(dir $(SKIPPED)) && : >$(SKIPPED)
	@BULKHEAD_SKIPPED=$(SKIPPED) resources/tests/run; result=$$?; \
	if [ -s $(SKIPPED) ]; then cat $(SKIPPED); echo "tests skipped: $$(wc -l <$(SKIPPED))"; fi; \
	exit $$result

measure: ## Measure the code; SHOW=circles, phrases, names, long or wide lists violations
	@cargo run --quiet --package style -- $(SHOW)

hooks: ## Check each commit message as CI does, in this clone and its worktrees
	git config core.hooksPath resources/hooks

check: ## Formatting, lints and style rules, as CI wants them
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --quiet -- --deny warnings
	cargo test --quiet --package style

build: ## Build target/release/bulkhead, which needs no shared library
	@cargo rustc --quiet --release --package vmm --bin bulkhead -- -C target-feature=+crt-static

lab: ## Build or refresh the cached lab image
	@resources/lab/host-packages.sh
	@cargo run --quiet --package lab -- build

lab-zfs: ## The same, and ZFS for its host, which is compiled: some minutes more, once
	@resources/lab/host-packages.sh
	@cargo run --quiet --package lab -- build --zfs

sim: ## Cut the power of simulated disks: SEED= SCHEDULES= MODE=
	@cargo run --quiet --release --package sim -- \
		$(if $(SEED),--seed $(SEED)) $(if $(SCHEDULES),--schedules $(SCHEDULES)) $(if $(MODE),--mode $(MODE))

chaos: ## Disturb the program under verified load: SECONDS= SEED= JSON=1
	@cargo run --quiet --release --package chaos -- \
		$(if $(SECONDS),--seconds $(SECONDS)) $(if $(SEED),--seed $(SEED)) $(if $(JSON),--json)

guests: build lab-zfs ## Run all scenarios with real guests, those that take long and those with ZFS as well
	@resources/tests/host-packages.sh
	@cargo test --no-fail-fast --package guest-tests -- --include-ignored --skip walkthrough:: --skip small_trims::
	@cargo test --package device-tests --test scsi_model zfs_volume -- --ignored

cycles: build lab ## Boot real guests and power them off, fifty times
	BULKHEAD_CYCLES=50 cargo test --package guest-tests cycles:: -- --nocapture --include-ignored

thin: build lab-zfs ## Let real guests give space back: each file system, store, bus and way
	BULKHEAD_THIN=all cargo test --package guest-tests thin:: -- --nocapture --include-ignored --skip small_trims::

crash: build lab-zfs ## Cut the power of real hosts, explore crash states: HOURS= CUTS= SEED= ROWS= HOSTS= JSON=1
	@resources/tests/host-packages.sh
	@cargo run --quiet --release --package powercut -- $(if $(HOURS),--hours $(HOURS)) $(if $(CUTS),--cuts $(CUTS)) \
		$(if $(EXPLORE),--explore $(EXPLORE)) $(if $(HOSTS),--hosts $(HOSTS)) $(if $(SEED),--seed $(SEED)) $(if $(ROWS),--rows $(ROWS)) $(if $(JSON),--json) \
		$(if $(LEAST_CUTS),--least-cuts $(LEAST_CUTS)) $(if $(LEAST_STATES),--least-states $(LEAST_STATES))

bench: ## Measure the storage stack beside fio and qemu-storage-daemon
	@resources/bench/host-packages.sh
	@cargo run --quiet --release --package bench -- compare

bench-gate: ## Count instructions and system calls per request, as CI wants them
	@resources/bench/host-packages.sh
	@cargo run --quiet --release --package bench -- gate

bench-trims: ## Measure reads while another part of their disk is discarded
	@resources/bench/host-packages.sh
	@cargo run --quiet --release --package bench -- trims

clean: ## Remove what was built, but not the cached lab image
	cargo clean
