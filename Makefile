# `make demo` shows what the library does; `make test` proves that it works. Both need Python >= 3.11 alone.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test docs reproduce benchmark clean

demo: .venv/demo
	$(BIN)/unseen run digits --network "cnn(width=16)" --steps 200 --learning-rate 0.003

test: .venv/test
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2

docs: .venv/test
	$(BIN)/python -m unseen.reports.documents

reproduce: .venv/test
	$(BIN)/unseen reproduce all --record docs/reproductions

benchmark: .venv/test
	$(BIN)/python -m benchmarks --markdown docs/benchmarks.md

.venv/pip:
	$(PYTHON) -m venv .venv
	touch $@

.venv/demo: .venv/pip pyproject.toml constraints.txt
	$(BIN)/pip install -q -c constraints.txt -e ".[data]"
	touch $@

.venv/test: .venv/pip pyproject.toml constraints.txt
	$(BIN)/pip install -q -c constraints.txt -e ".[data,backbones,onnx,scale,graph,language,labels,boxes,test]"
	touch $@

clean:
	rm -rf .venv
