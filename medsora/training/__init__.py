"""How the two stages are trained: the video VAE first, then the denoiser on its latents."""
