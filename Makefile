# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
# make demo [VIDEO=any.mp4] [OUT=out]   map a video, show what came of it
# make test [ARGS=test/test_demo.py]    run every test, or some

PYTHON ?= python3
OUT ?= out
export OUT VIDEO  # the shell expands them, whatever is in the names
ENVIRONMENT = .venv
READY = $(ENVIRONMENT)/.ready
NETWORKS = $(ENVIRONMENT)/.networks
# Nodes talk over loopback only.
RUN = AMENT_PREFIX_PATH='$(CURDIR)/$(ENVIRONMENT)' ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST \
      PATH='$(CURDIR)/$(ENVIRONMENT)/bin':"$$PATH"

.PHONY: demo test lint environment clean
.DELETE_ON_ERROR:

demo: $(READY)
	@$(RUN) slam3r demo --out "$$OUT" $(if $(VIDEO),--video "$$VIDEO")

test: $(READY) $(NETWORKS)
	@$(RUN) python -m pytest $(or $(ARGS),test)

lint: $(READY)
	@$(RUN) ruff check .

environment: $(READY)

$(READY): requirements.txt constraints.txt pyproject.toml setup.py CMakeLists.txt package.xml \
          $(shell find msg srv cmake launch config rviz -type f 2>/dev/null)
	@$(PYTHON) cmake/environment.py '$(ENVIRONMENT)'
	@touch '$(READY)'

# The demo does without torch and Open3D, which are large.
$(NETWORKS): $(READY) constraints.txt
	@echo 'slam3r_ros: installing torch and Open3D for the tests'
	@$(RUN) python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
	  torch safetensors huggingface_hub pillow "open3d-cpu; platform_machine == 'x86_64'"
	@touch '$(NETWORKS)'

clean:
	rm -rf build install log out '$(ENVIRONMENT)'
