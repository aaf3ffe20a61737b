"""What each figure says, in a line, and why a clip may not have it."""

from __future__ import annotations

MEANINGS = {
    "mouth_openness": "mean height of the gap between the lips, in distances between the eyes",
    "mouth_movement": "how much that height varies (standard deviation)",
    "openness_heard_r": "how well the mouth's openness can be told from the sound, correlation; 0: not at all",
    "openness_heard_lag": "frames by which the mouth is later than the sound",
    "openness_r": "correlation of the mouth's openness with the reference's",
    "width_r": "correlation of the mouth's width with the reference's",
    "openness_lag": "frames by which the mouth is later than the reference's",
    "lmd": "distance of the lips' landmarks from the reference's, in percent of the distance between the eyes",
    "blinks_per_minute": "blinks per minute; people who talk blink 10 to 30 times",
    "head_range": "how far the head turns around its mean, degrees (standard deviation of the three angles together)",
    "head_speed": "how fast the head turns, degrees per second; trembling landmarks alone give some",
    "face_share": "share of the frames in which the face is found",
    "sharpness": "fine detail in the whole picture (standard deviation of the Laplacian); noise raises it too",
    "sharpness_late": "sharpness of the last second less that of the first",
    "colour_drift": "change of the upper corners' colours from the first second to the last, of 255",
    "flicker": "how much the brightness jumps from frame to frame, of 255",
    "frozen_share": "share of the frames that equal the one before",
    "psnr": "nearness of the pixels to the reference, dB; 100 is equal",
    "psnr_outside": "the same outside the mouth's mask",
    "psnr_face": "the same in the face's square",
    "ssim": "structural similarity to the reference; 1 is equal",
    "ssim_outside": "the same outside the mouth's mask",
    "ssim_face": "the same in the face's square",
    "lpips": "distance from the reference as a network sees it; 0 is equal",
    "lpips_face": "the same in the face's square",
    "sync_c": "Sync-C: how clearly one offset of lips and sound fits best (SyncNet)",
    "sync_d": "Sync-D: distance of lips and sound at that offset (SyncNet)",
    "sync_offset": "frames by which the picture is later than the sound (SyncNet)",
    "stable_sync": "how well lips and sound fit, cosine of StableSyncNet",
    "csim": "likeness of the face to the portrait, cosine; the same person has about 0.95 and more",
    "csim_late": "likeness in the last second less that in the first",
    "container_duration": "seconds that the file's header states",
    "picture_duration": "seconds from the first picture to the end of the last",
    "frame_rate": "pictures per second of the file",
    "sound_offset": "seconds by which the sound starts after the picture",
    "sound_duration": "seconds of sound from the first picture on",
    "fid": "Frechet Inception Distance of all frames to the references'",
    "fid_face": "the same of the faces' squares",
    "fvd": "Frechet Video Distance of all clips to the references, by I3D",
    "fvd_videomae": "Frechet Video Distance of all clips to the references, by VideoMAE",
}
"""By the figure's name in tables and files."""

_HEARD = "needs 4 s in which a mouth is seen and there is sound"
_SILENT = "there is no sound"
UNKNOWN = {
    "openness_heard_r": _HEARD,
    "openness_heard_lag": _HEARD,
    "lmd": "no frame has a face in both videos",
    "head_speed": "needs a face in two frames in a row",
    "sharpness": "the picture is too small",
    "sharpness_late": "the picture is too small",
    "flicker": "needs 3 frames",
    "frozen_share": "needs 2 frames",
    "stable_sync": "needs 16 frames with sound",
    "csim": "no frame that is looked at, every fifth, has a face",
    "csim_late": "the first or the last second has no face",
    "container_duration": "the header does not state it",
    "sound_offset": _SILENT,
    "sound_duration": _SILENT,
}
"""Why a figure is not a number."""
