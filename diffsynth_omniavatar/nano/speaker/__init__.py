"""A drawn person who speaks made-up speech: any number of clips whose mouth is known exactly.

    from diffsynth_omniavatar.nano.speaker.clips import draw_clip

    clip = draw_clip(7, frames=81, split="train")
    python -m diffsynth_omniavatar.nano.speaker FOLDER --clips 100 --frames 101 --seed 0 --split train

Sound and mouth come from one row of phonemes. A source-filter synthesiser makes the sound: pulses or noise through
formants (vowels, nasals), bands of noise (fricatives, bursts). The mouth follows targets, openness and width, that a
phoneme has for every voice. Loudness tells little of them: it is drawn by syllable, all vowels are equally loud, "i"
and "u" are nearly closed, and "m" and "s" sound with a closed mouth. Head, eyes and colours know nothing of the sound.

The mouth's targets are smoothed over 0.16 s, and frame j shows it at the middle of its time, at
(j + 1/2) / 25 s: the middle of the sound from j/25 to (j + 1)/25 s.

Nobody and nothing of the evaluation split occurs in training: words, combinations of hair, clothes and background,
and bands of pitch, formant scale and skin tone each belong to one split. numpy draws; PyAV writes.
"""
