"""VAE Lab: every variational autoencoder as a choice of prior, likelihood, posterior and bound."""
