# Two commands do everything on a fresh Debian 12 or 13: `make run` and `make test`. The rest is for developers.

VENV := .venv
PYTHON := $(VENV)/bin/python
SESSFS := $(VENV)/bin/sessfs
MOUNTPOINT := .whatsapp-sessions
OPT := /opt/sessfs
BIN := /usr/local/bin
SBIN := /sbin
# Most tests wait most of the time; each file stays with one process, and the slow ones come first.
PYTEST := $(PYTHON) -m pytest -n 2 --dist loadfile --no-loadscope-reorder
# Tests mount, kill daemons and cut the power of disks: they need root.
AS_ROOT := $(shell [ "$$(id -u)" = 0 ] || echo sudo -H env "PATH=$$PATH")

.PHONY: help run stop test lint soak fuzz bench bench-full install uninstall clean

help:
	@echo "make run         install what is missing, and mount ./$(MOUNTPOINT)"
	@echo "make stop        unmount it"
	@echo "make test        install what the tests need, and run them with the linters"
	@echo "make install     (root) sessfs in $(OPT), $(BIN)/sessfs, and helpers for mount(8) and /etc/fstab"
	@echo "make uninstall   (root) remove those; no data is touched"
	@echo "make lint | soak | fuzz | bench | bench-full | clean"

run:
	@scripts/bootstrap.sh run
	@scripts/mount.sh $(MOUNTPOINT)
	@echo "Look at it:  $(SESSFS) status $(MOUNTPOINT)   and   $(SESSFS) sessions $(MOUNTPOINT)"
	@echo "Unmount it:  make stop   or   $(SESSFS) umount $(MOUNTPOINT)"

stop:
	@scripts/umount.sh $(MOUNTPOINT)

test:
	@scripts/bootstrap.sh test
	@$(MAKE) --no-print-directory lint
	$(AS_ROOT) $(PYTEST)

lint:
	@scripts/bootstrap.sh test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# Hours: the state machines and the crash tests, with many more examples.
soak:
	@scripts/bootstrap.sh test
	$(AS_ROOT) env SESSFS_TEST_CRASH_ROUNDS=500 SESSFS_TEST_POWER_ROUNDS=500 SESSFS_TEST_FULL_ROUNDS=500 \
	    SESSFS_TEST_LISTING_STEPS=1000000 SESSFS_TEST_FINDS=150 $(PYTHON) -m pytest --hypothesis-profile=soak \
	    tests/model tests/crash tests/fault tests/mount/test_listing.py
	$(AS_ROOT) env SESSFS_TEST_SNAPSHOTS=100 SESSFS_TEST_UPLOAD_MB=1000 SESSFS_TEST_NAMES=100000 \
	    SESSFS_TEST_SCALE_FILES=100000 SESSFS_TEST_IMPORT_SESSIONS=50 $(PYTHON) -m pytest tests/mount/test_remote_snapshots.py \
	    tests/mount/test_remote_room.py tests/mount/test_remote_cost.py tests/mount/test_scale.py tests/mount/test_import.py \
	    tests/e2e/test_chrome_remote.py tests/e2e/test_chrome_import.py

# As long as you like: decoders and rules against random input.
fuzz:
	@scripts/bootstrap.sh test
	$(AS_ROOT) $(PYTHON) -m pytest --hypothesis-profile=soak tests/unit

bench:
	@scripts/bootstrap.sh test
	$(AS_ROOT) $(PYTHON) bench/run.py

bench-full:
	@scripts/bootstrap.sh test
	$(AS_ROOT) $(PYTHON) bench/run.py --full

install:
	@[ "$$(id -u)" = 0 ] || { echo "make install needs root" >&2; exit 1; }
	@scripts/bootstrap.sh install $(OPT)
	install -d $(BIN) $(SBIN)
	ln -sf $(OPT)/bin/sessfs $(BIN)/sessfs
	install -m 755 scripts/mount.sessfs $(SBIN)/mount.sessfs
	install -m 755 scripts/umount.sessfs $(SBIN)/umount.sessfs
	ln -sf mount.sessfs $(SBIN)/mount.fuse.sessfs
	ln -sf umount.sessfs $(SBIN)/umount.fuse.sessfs
	@echo "installed; try: sessfs doctor"

uninstall:
	rm -f $(BIN)/sessfs $(SBIN)/mount.sessfs $(SBIN)/umount.sessfs $(SBIN)/mount.fuse.sessfs $(SBIN)/umount.fuse.sessfs
	rm -rf $(OPT)

clean:
	$(AS_ROOT) rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis tests/e2e/node_modules tests/e2e/page/large/node_modules
	$(AS_ROOT) find . -name __pycache__ -type d -prune -exec rm -rf {} +
