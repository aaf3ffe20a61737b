"""Seconds from the start of `omniavatar generate` to its first step, and the main memory that loading takes.

    python benchmarks/start.py --folder /fast/disk/models                     # 42 GB; written if it is not there
    python benchmarks/start.py --folder /fast/disk/models --flags="--quantize fp8" --flags="--stream_weights"
    python benchmarks/start.py --folder /tmp/tiny --model tiny                # without a GPU

The files have the names, keys and shapes of the released ones, and random values. They were just written or read, so
that the system has them in memory as far as that goes. Each of --flags is a run; a line of JSON for each.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import soundfile
import torch
from PIL import Image
from random_models import made_on
from safetensors.torch import save_file
from transformers import Wav2Vec2Config, Wav2Vec2Model

from diffsynth_omniavatar import host
from diffsynth_omniavatar.model.checkpoint import EXTRA_MODULES, save_omniavatar
from diffsynth_omniavatar.model.config import LORA_TARGETS, PRESETS, CheckpointConfig, LoRAConfig, OmniAvatarConfig
from diffsynth_omniavatar.model.dit import OmniAvatarDiT, wan_sizes
from diffsynth_omniavatar.model.lora import adapted_layers
from diffsynth_omniavatar.nano.family import write_random_family
from diffsynth_omniavatar.nano.tokenizers import write_byte_tokenizer

GIB = 2**30


def write_models(folder: Path, model: str) -> None:
    """A folder as `--models_folder` takes it."""
    config, device = PRESETS[model], "cuda" if torch.cuda.is_available() else "cpu"
    wan = folder / f"Wan2.1-T2V-{model}"
    tokenizer = wan / "google" / "umt5-xxl"
    tokenizer.mkdir(parents=True)
    write_byte_tokenizer(tokenizer)
    with made_on(device, torch.bfloat16):
        text_encoder = host.WanTextEncoder().state_dict()
    torch.save({key: value.cpu() for key, value in text_encoder.items()}, wan / "models_t5_umt5-xxl-enc-bf16.pth")
    del text_encoder
    torch.save(host.WanVideoVAE().model.state_dict(), wan / "Wan2.1_VAE.pth")
    with made_on(device, torch.bfloat16):
        dit = host.WanModel(**wan_sizes(config, 16)).state_dict()
    save_file({key: value.contiguous() for key, value in dit.items()}, wan / "diffusion_pytorch_model.safetensors")
    del dit
    write_checkpoint(folder / f"OmniAvatar-{model}", config)
    Wav2Vec2Model(Wav2Vec2Config()).save_pretrained(folder / "wav2vec2-base-960h")


def write_checkpoint(folder: Path, config: OmniAvatarConfig) -> None:
    """OmniAvatar's, in LoRA form, with the rank of the published ones."""
    with torch.device("meta"):
        dit = OmniAvatarDiT(config)
    lora = LoRAConfig()
    tensors = {k: 0.01 * torch.randn(v.shape) for k, v in dit.state_dict().items() if k.startswith(EXTRA_MODULES)}
    for name, layer in adapted_layers(dit, LORA_TARGETS).items():
        tensors[f"{name}.lora_A.weight"] = 0.01 * torch.randn(lora.rank, layer.in_features)
        tensors[f"{name}.lora_B.weight"] = 0.01 * torch.randn(layer.out_features, lora.rank)
    save_omniavatar(folder, tensors, CheckpointConfig(in_dim=config.in_dim, lora=lora, model=config))


def anonymous_memory(pid: int) -> int:
    """Bytes of a process that are not pages of files."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0)


def run(folder: Path, model: str, flags: str) -> dict[str, object]:
    """Start the command, and stop it when it has begun the first step."""
    inputs = folder / "inputs"
    inputs.mkdir(exist_ok=True)
    Image.new("RGB", (512, 512), "gray").save(inputs / "face.png")
    soundfile.write(inputs / "speech.wav", torch.randn(16000).mul(0.1).numpy(), 16000)
    which = ["--models_folder", str(folder)] + ([] if model == "tiny" else ["--model", model])
    command = [sys.executable, "-m", "diffsynth_omniavatar", "generate", *which, "--prompt", "A person speaks."]
    command += ["--image", str(inputs / "face.png"), "--audio", str(inputs / "speech.wav")]
    command += ["--out", str(inputs / "talk.mp4"), "--steps", "1", *flags.split()]
    started, peak, first = time.monotonic(), 0, None
    with open(inputs / "log", "w+", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        while process.poll() is None and first is None:
            time.sleep(0.1)
            peak = max(peak, anonymous_memory(process.pid))
            if "Chunk 1 of" in (inputs / "log").read_text(encoding="utf-8"):
                first = round(time.monotonic() - started, 1)
        process.wait()
        log.seek(0)
        said = log.read()
    if first is None or process.returncode:
        raise SystemExit(said[-3000:])
    return {"flags": flags, "seconds to the first step": first, "peak of main memory, GiB": round(peak / GIB, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="models; written if it does not exist")
    parser.add_argument("--model", choices=[*PRESETS, "tiny"], default="14B")
    parser.add_argument("--flags", action="append", help="more flags of generate, as one text; may be repeated")
    args = parser.parse_args()
    if not args.folder.exists():
        started = time.monotonic()
        write_random_family(args.folder) if args.model == "tiny" else write_models(args.folder, args.model)
        print(f"wrote {args.folder} in {time.monotonic() - started:.0f} s", flush=True)
    for flags in args.flags or [""]:
        print(json.dumps({"model": args.model, **run(args.folder, args.model, flags)}), flush=True)


if __name__ == "__main__":
    main()
