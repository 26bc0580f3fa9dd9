# Everything sets itself up: a virtual environment in .venv, packages as pinned in constraints.txt.
PYTHON ?= python3
VENV ?= .venv
AUDIT = $(VENV)/bin/audit

.PHONY: demo score discovery gate counterfactuals test lint world worlds docs benchmark faults scale clean

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -q -c constraints.txt torch
	$(VENV)/bin/pip install -q -c constraints.txt -e '.[test,efficientnet-lite]'
	touch $@

WORLD = $(addprefix audit/zoo/,scenes.py world.py world.yaml export.py)

work/world/pool: $(WORLD) | $(VENV)/installed
	rm -rf work/world
	$(AUDIT) zoo export work/world/labelled --split labelled
	$(AUDIT) zoo export work/world/pool --split pool --layout parquet

world: work/world/pool

# The worlds that are drawn from their numbers: their classifiers, trained again and measured. An hour or two on 2 cores.
worlds: $(VENV)/installed
	for n in 2 3 4 5 6; do $(AUDIT) zoo train all --world $$n && $(AUDIT) zoo measure --world $$n || exit 1; done

# The main job on the embedded world: a table of findings, and a report.
demo: $(VENV)/installed work/world/pool
	$(AUDIT) run examples/demo.yaml
	$(AUDIT) zoo score runs/demo
	@echo "open the report:  $(AUDIT) dashboard runs/demo"

# All classes, both shortcut models, against the planted truth. Half an hour on 2 cores.
score: $(VENV)/installed work/world/pool
	$(AUDIT) run examples/score.yaml
	$(AUDIT) zoo score runs/score

work/world-%/pool: $(WORLD) | $(VENV)/installed
	rm -rf $(@D)
	$(AUDIT) zoo export $(@D)/labelled --split labelled --world $*
	$(AUDIT) zoo export $@ --split pool --layout parquet --world $*

AGAIN = zoo-work/weights/reference-seed-1
$(AGAIN)/training.json: | $(VENV)/installed
	$(AUDIT) zoo train reference --seed 1

# Five drawn worlds, one of them with a second seed, and a fair model against itself: how much of what was planted is
# found, how often discovery cries wolf. An hour or more on 2 cores.
discovery: $(VENV)/installed work/world/pool $(AGAIN)/training.json $(foreach n,2 3 4 5 6,work/world-$(n)/pool)
	for n in 2 3 4 5 6; do sed "s/world-2/world-$$n/" examples/world.yaml > work/world-$$n.yaml || exit 1; done
	sed "s/^name: .*/name: world-2-again/; s/^seed: .*/seed: 1/" examples/world.yaml > work/world-2-again.yaml
	for n in 2 3 4 5 6 2-again; do $(AUDIT) run work/world-$$n.yaml || exit 1; done
	$(AUDIT) run examples/fair.yaml
	$(VENV)/bin/python -m benchmarks.discovery $(foreach n,2 3 4 5 6,runs/world-$(n)) --twin runs/world-2-again \
	    --fair runs/fair --output work/discovery.json

# Two versions of a model: one with a shortcut more is blocked by a gate, the other way round the shortcut is fixed.
MENDED = zoo-work/weights/shortcut-b-without-bird-in-sky
$(MENDED)/training.json: | $(VENV)/installed
	$(AUDIT) zoo train shortcut-b --without bird-in-sky

gate: $(VENV)/installed work/world/pool $(MENDED)/training.json
	sed "s|zoo:shortcut-b|../$(MENDED)|; s/^name: .*/name: version-mended/" examples/version.yaml > work/version-mended.yaml
	$(AUDIT) run examples/version.yaml
	$(AUDIT) run work/version-mended.yaml
	$(AUDIT) gate runs/version-mended --rules examples/ci/no-new-modes.yaml --baseline runs/version
	! $(AUDIT) gate runs/version --rules examples/ci/no-new-modes.yaml --baseline runs/version-mended --junit work/gate.xml

# Searches against three plainer ways of doing the same, on one thread: CPU seconds, ratios, and work/benchmark.json.
benchmark: $(VENV)/installed
	mkdir -p work
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m benchmarks.search --output work/benchmark.json

# Every fault of the table, and hundreds of kills. An hour and more on 2 cores.
faults: $(VENV)/installed
	mkdir -p work
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m benchmarks.faults --long --output work/faults.json

# What orchestration costs, and the driver with 512 logical GPUs, 100,000 units, 10 million items. An hour on 2 cores.
scale: $(VENV)/installed
	mkdir -p work
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m benchmarks.overhead --output work/overhead.json
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m benchmarks.scale --output work/scale.json

work/world/heldout: work/world/pool
	rm -rf $@
	$(AUDIT) zoo export $@ --split heldout --layout parquet --limit 1000

# Counterfactuals of the world's models, each step of the method beside them, judged by the planted truth. Hours on 2 cores.
counterfactuals: $(VENV)/installed work/world/heldout
	$(AUDIT) run examples/counterfactuals.yaml
	$(AUDIT) zoo counterfactuals runs/counterfactuals
	$(AUDIT) run examples/error-analysis.yaml
	$(AUDIT) zoo counterfactuals runs/error-analysis
	$(VENV)/bin/python docs/counterfactual_grid.py runs/counterfactuals runs/error-analysis

lint: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# torchvision and what needs it, apart from all other packages, whose work its mere presence changes.
work/torchvision/installed: constraints.txt | $(VENV)/installed
	rm -rf $(@D)
	$(VENV)/bin/pip install -q --no-deps -c constraints.txt --target $(@D) timm torchvision
	touch $@

test: $(VENV)/installed lint work/torchvision/installed
	$(VENV)/bin/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

# The pictures of README and docs, from runs/demo and the shipped models. Screenshots need Chromium.
docs: $(VENV)/installed runs/demo/job.json
	$(VENV)/bin/python docs/pictures.py runs/demo bird
	$(VENV)/bin/python docs/screenshots.py runs/demo

runs/demo/job.json:
	$(MAKE) demo

clean:
	rm -rf work runs
