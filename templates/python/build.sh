# Builds dist/app.wasm. Installs the compiler into .venv/ the first time, and again when requirements.txt changes.
set -eu

if ! cmp -s requirements.txt .venv/installed; then
    python3 -m venv --clear .venv
    .venv/bin/python -m pip install --quiet --only-binary :all: -r requirements.txt
    cp requirements.txt .venv/installed
fi
mkdir -p dist
.venv/bin/componentize-py --quiet --wit-path wit --world app componentize app --output dist/app.wasm
