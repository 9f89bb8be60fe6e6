"""What is timed: lists of cases, which the tests beside this folder hand to pytest.

path_scan.py, ssd_scan.py, reorder.py, spectral.py    the operators, each beside what a user could otherwise write
layers.py       the mixers, beside attention at equal width and tokens
models.py       a training and a sampling step of the denoiser, also with attention in place of its mixers
vae.py          the video VAE, clips to latents and back
attention.py    what would take the mixers' place: full, factorised and windowed attention
trainer.py      a trainer before its first step and its batch, for all that times training
"""
