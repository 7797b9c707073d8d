# SPDX-License-Identifier: Apache-2.0
# The short way in; meson and ninja do the work.
#
#   make          build
#   make demo     a live Redis moves between two hosts (namespaces) of this machine
#   make demo-remote   the same by the four commands and their daemons
#   make check    all tests
#   make check-vm   those that want soft-dirty bits, on Debian 13's kernel in a virtual machine
#   make bench    the benchmarks, some of them in short; all of it: bench/downtime, bench/redis, bench/rounds
#   make install  into $(PREFIX), /usr/local unless said otherwise; DESTDIR is honoured

BUILD ?= build
# Said on the command line or in the environment, it also changes what is configured already.
ifeq ($(origin PREFIX),undefined)
PREFIX = /usr/local
CONFIGURE = :
else
CONFIGURE = $(MESON) configure --prefix $(PREFIX) $(BUILD)
endif
# Of the system's own Python, so that apt's meson and pytest are found whatever else is in PATH.
PYTHON ?= /usr/bin/python3
MESON = $(PYTHON) /usr/bin/meson
export GODWIT_BUILD = $(abspath $(BUILD))

all: build-setup
	ninja -C $(BUILD)

build-setup:
	scripts/setup build
	if test -f $(BUILD)/build.ninja; then $(CONFIGURE); \
	else $(MESON) setup --prefix $(PREFIX) $(BUILD); fi

# No more than a demonstration needs.
demo-build: build-setup
	ninja -C $(BUILD) godwit godwit-hook godwit-scan-filter.so tests/workloads/heartbeat tests/workloads/hostinit

demo: demo-build
	scripts/setup test
	$(PYTHON) scripts/demo

demo-remote: demo-build
	scripts/setup test
	$(PYTHON) scripts/demo remote

check: all
	scripts/setup test
	tests/run

check-vm: all
	scripts/setup vm
	tests/vm/run

bench: all
	scripts/setup test
	bench/bulk
	bench/tracking
	bench/chain --size 256 --runs 3
	bench/downtime --size 512 --dirty 50 --runs 3
	bench/redis --size 256 --runs 1
	bench/rounds --size 512 --runs 3
	bench/streams --size 128 --runs 1
	bench/tls --size 256 --runs 1

install: all
	$(MESON) install -C $(BUILD)

clean:
	rm -rf $(BUILD)

.PHONY: all build-setup demo-build demo demo-remote check check-vm bench install clean
