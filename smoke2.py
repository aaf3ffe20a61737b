import torch, time, json
from generate_step import *
from random_models import random_vae, random_inputs
from diffsynth_omniavatar.model.quantize import quantize_blocks, LAYERS

vae = random_vae().to("cuda", torch.bfloat16)
z = torch.randn(1, 16, 21, 64, 64, device="cuda", dtype=torch.bfloat16)


def t(n, f):
    with torch.no_grad():
        f()
        torch.cuda.synchronize()
        s = time.perf_counter()
        r = f()
        torch.cuda.synchronize()
        print(n, round(time.perf_counter() - s, 3), round(torch.cuda.max_memory_allocated() / 2**30, 1), flush=True)
        return r


ref = t("vae", lambda: vae.decode(z, device="cuda", tiled=False))
torch.backends.cudnn.benchmark = True
t("vae benchmark", lambda: vae.decode(z, device="cuda", tiled=False))
try:
    vae.model.to(memory_format=torch.channels_last_3d)
    r = t("vae channels last", lambda: vae.decode(z, device="cuda", tiled=False))
    print(((r.float() - ref.float()).norm() / ref.float().norm()).item())
except Exception as e:
    print(e)
try:
    from diffsynth_omniavatar.losses import frame_decoder

    print([n for n in dir(frame_decoder) if n[0].isupper()])
    d = frame_decoder.FrameDecoder(vae) if hasattr(frame_decoder, "FrameDecoder") else None
except Exception as e:
    print(e)
del vae
clean()
torch.backends.cudnn.benchmark = False
PARTS["14B"] = ("14B", (33, 256, 256))
b = Bench.make("14B", 1)
base = b.step(BlockRunner(), b.passes[:1])[1].float()
dev = lambda r: float(((r.float() - base).norm() / base.norm()).item())
groups = {"self_attn": ["self_attn"], "cross_attn": ["cross_attn"], "ffn.0": ["ffn.0"], "ffn.2": ["ffn.2"]}
for method in METHODS:
    out = {}
    for name, layers in groups.items():
        b.dit = None
        clean()
        b.dit = gated_dit("14B")
        keep = [l for l in LAYERS if not any(l == g or l.startswith(g + ".") for g in layers)]
        quantize_blocks(b.dit, method, keep)
        out[name] = round(dev(b.step(BlockRunner(), b.passes[:1])[1]), 4)
    b.dit = None
    clean()
    b.dit = gated_dit("14B")
    quantize_blocks(b.dit, method)
    out["all"] = round(dev(b.step(BlockRunner(), b.passes[:1])[1]), 4)
    b.dit = None
    clean()
    b.dit = gated_dit("14B")
    quantize_blocks(b.dit, method, ["first", "last"])
    out["but first, last"] = round(dev(b.step(BlockRunner(), b.passes[:1])[1]), 4)
    print(method, json.dumps(out), flush=True)
