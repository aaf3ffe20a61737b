"""Run in several processes: writes a cache and what this process saw. `precompute_worker.py FAMILY TABLE CACHE`."""

import json
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from test_precompute import FLOAT32, RECIPE, SETTINGS, encoders

from diffsynth_omniavatar.data.dataset import scan_clips
from diffsynth_omniavatar.data.precompute import precompute
from diffsynth_omniavatar.data.sources import read_clips

if __name__ == "__main__":
    torch.set_num_threads(1)
    family, table, cache = map(Path, sys.argv[1:])
    state = PartialState(cpu=True)
    clips = read_clips(table)
    report = precompute(
        encoders(family), clips, cache, settings=SETTINGS, recipe=RECIPE, options=FLOAT32, show_progress=False
    )
    left_out = [fault.clip for fault in scan_clips(clips, SETTINGS, RECIPE).faults]
    seen = {"left out": left_out, "faults": report.faults, "encoded": report.encoded, "processes": state.num_processes}
    Path(f"{cache}.{state.process_index}.json").write_text(json.dumps(seen))
    state.destroy_process_group()
