#!/usr/bin/env bash
# Takes the networks and their licence from MediaPipe's wheel into this folder.
#
#   pip download --no-deps --only-binary :all: --python-version 3.11 --platform manylinux_2_28_x86_64 mediapipe==0.10.21
#   ./take.sh mediapipe-0.10.21-cp311-cp311-manylinux_2_28_x86_64.whl
set -euo pipefail
wheel=$(realpath "$1")
cd "$(dirname "$0")"
taken=$(mktemp -d)
trap 'rm -rf "$taken"' EXIT
unzip -qj "$wheel" '*/face_detection_full_range_sparse.tflite' '*/face_landmark.tflite' '*.dist-info/LICENSE' -d "$taken"
(cd "$taken" && sha256sum --check --strict) <SHA256SUMS
sed '/^====/,$d' "$taken/LICENSE" >LICENSE # what follows is the licence of a part that is not here
mv "$taken"/*.tflite .
