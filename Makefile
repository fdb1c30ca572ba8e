# Two commands: `make course` runs the course, `make test` tests it. Both set themselves up.
DATASET ?= phantom
IMAGES ?= $(if $(filter mosmed,$(DATASET)),covid-ct,phantom)
PROFILE ?= quick
SEED ?= 0
PYTHON ?= python3
COLAB_PYTHON ?= python3.13
RUN = .venv/bin/python

.PHONY: course test check processors test-colab benchmark experiments gpu lab notebooks student solutions classroom \
	gifs diagrams repo-url lock site slides lint clean
.DEFAULT_GOAL := course

.venv/installed: requirements.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10))" || { echo \
		"$(PYTHON) is older than Python 3.10: make PYTHON=python3.12, or another that is there"; exit 1; }
	@$(RUN) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv || { echo \
		"no environment: on Debian and Ubuntu, apt install python3-venv, then make again"; exit 1; }
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/installed-dev: .venv/installed requirements-dev.txt requirements-site.txt
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

course: .venv/installed
	$(RUN) -m helpers.course.runner course --dataset "$(DATASET)" --images "$(IMAGES)" --profile $(PROFILE) --seed $(SEED)

test: .venv/installed-dev
	$(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.venv/installed-benchmarks: .venv/installed-dev tests/benchmarks/requirements.txt
	$(RUN) -m pip install --quiet --disable-pip-version-check -r tests/benchmarks/requirements.txt
	touch $@

# Every table and figure of docs/speed.md, beside MONAI, TorchIO and the Keras recipe (an hour)
benchmark: .venv/installed-benchmarks
	mkdir -p runs/benchmarks
	$(RUN) -m tests.benchmarks.preprocessing --rounds 7 --json runs/benchmarks/preprocessing.json \
		--figure runs/benchmarks/preprocessing.png
	$(RUN) -m tests.benchmarks.growth --json runs/benchmarks/growth.json
	$(RUN) -m tests.benchmarks.training --json runs/benchmarks/training.json
	$(RUN) -m tests.benchmarks.accuracy --json runs/benchmarks/accuracy.json \
		--figure runs/benchmarks/accuracy.png
	$(RUN) -m tests.benchmarks.viewer
	$(RUN) -m tests.benchmarks.dicom
	$(MAKE) course
	$(RUN) -m tests.benchmarks.course

# The whole study of notebook 07, into helpers/course/experiments.csv (an hour or two)
experiments: .venv/installed-dev
	$(RUN) -m tests.benchmarks.experiments

# All that a GPU has to be measured for, in about ten minutes, into docs/gpu.md; DATA names packed
# real images, if there are any: .venv/bin/python -m tests.benchmarks.gpu_data --help
gpu: .venv/installed-benchmarks
	$(RUN) -m tests.benchmarks.gpu $(if $(DATA),--data "$(DATA)") --json runs/gpu.json --markdown docs/gpu.md

# The package versions of Google Colab, in an environment of their own (5 GB)
.venv-colab/installed: tests/colab/constraints.txt tests/colab/requirements.txt
	@if test -x .venv-colab/bin/python; then :; \
	elif $(COLAB_PYTHON) -c "" 2>/dev/null; then $(COLAB_PYTHON) -m venv .venv-colab; \
	else echo "no $(COLAB_PYTHON) here, so $(PYTHON) is taken, which Colab's versions may not fit"; \
	$(PYTHON) -m venv .venv-colab; fi
	.venv-colab/bin/python -m pip install --quiet --disable-pip-version-check \
		-c tests/colab/constraints.txt -r tests/colab/requirements.txt
	touch $@

# Run every notebook as in Colab: its versions, a bare folder, the course cloned
test-colab: .venv/installed-dev .venv-colab/installed
	$(RUN) -m pytest tests/test_colab.py

lab: .venv/installed
	$(RUN) -m jupyterlab --ip=127.0.0.1

# Execute the notebooks in place, as they are committed: make notebooks ONLY="02 05"
notebooks: .venv/installed
	$(RUN) -m helpers.course.runner notebooks $(ONLY)

# Copies for a class, in student/ and solutions/: without any solution, and with all filled in
student solutions: .venv/installed
	$(RUN) -m helpers.course.runner $@

# One folder for a room without a connection, in classroom/: make classroom WHEELS=no, or for other
# machines than this one PLATFORM=windows (macos, linux) and ROOM_PYTHON=3.12
classroom: .venv/installed
	$(RUN) -m helpers.course.runner classroom --profile $(PROFILE) $(if $(WHEELS),--wheels $(WHEELS)) \
		$(if $(PLATFORM),--platform $(PLATFORM)) $(if $(ROOM_PYTHON),--python $(ROOM_PYTHON))

# The drawings that explain, docs/diagrams/*.svg
diagrams: .venv/installed
	$(RUN) docs/diagrams/draw.py

.venv/installed-site: .venv/installed requirements-site.txt
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-site.txt
	touch $@

# The course's web site, in site/: the notebooks as they are committed, glossary, API, a study to scroll
site: .venv/installed-site
	$(RUN) docs/build_site.py

# A talk for each notebook, from its figures, in slides/: each is one file that needs no connection
slides: .venv/installed-site
	$(RUN) docs/build_slides.py

# The README's GIFs of the phantom
gifs: .venv/installed
	$(RUN) -m helpers.course.runner gifs

# Write the repository's address into every badge and setup cell: make repo-url URL=https://github.com/OWNER/NAME
repo-url: .venv/installed
	$(RUN) -m helpers.course.runner repo-url "$(URL)"

# requirements.lock: the versions in .venv, and what goes with them on other systems and Pythons
lock: .venv/installed-dev
	$(RUN) -m pip install --quiet --disable-pip-version-check "uv>=0.5"
	$(RUN) -m pip freeze --quiet > .venv/requirements.lock
	$(RUN) -m uv pip compile --quiet --universal --python-version 3.10 --no-annotate \
		--custom-compile-command "make lock, with $$($(RUN) --version) in .venv" \
		--output-file .venv/requirements.lock requirements.txt >/dev/null
	mv .venv/requirements.lock requirements.lock

# Before a commit: lint, the contract, the rooms and the quick unit tests, in a minute or so
QUICK = rooms contract diagrams models lite0 features augmentation image_augmentation evaluation volumes \
	fast cohort checks training moco explanations

check: .venv/installed-dev lint
	$(RUN) -m pytest -q $(wildcard $(QUICK:%=tests/test_%.py))

# The numeric tests as other processors compute them, on one thread and on two (an hour or two: with
# old kernels the features of a cohort take minutes)
NUMERIC = models image_models lite0 features augmentation image_augmentation training moco \
	distributed explanations processors
processors: .venv/installed-dev
	for kind in default:SSE41 avx2:AVX2 avx512:AVX512_CORE; do for threads in 1 2; do \
		echo "$$kind, $$threads threads"; \
		ATEN_CPU_CAPABILITY=$${kind%:*} ONEDNN_MAX_CPU_ISA=$${kind#*:} OMP_NUM_THREADS=$$threads \
			$(RUN) -m pytest -q $(NUMERIC:%=tests/test_%.py) || exit 1; done; done

lint: .venv/installed-dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

clean:
	rm -rf runs site slides data/phantom-*
