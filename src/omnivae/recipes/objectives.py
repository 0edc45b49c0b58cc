"""One network each, another objective: bounds, disentangling, and distances between the aggregate posterior and the prior."""

from __future__ import annotations

from omnivae.recipes.bases import convolutional, fully_connected, variant

_BURDA = {"batch_size": 20, "learning_rate": 1e-3, "optimizer": "adam"}
_BINARY = {"binarize": "stochastic"}

# -- tighter bounds: Burda's network of two layers of 200 and 50 latent dimensions

iwae = variant(
    fully_connected,
    "iwae",
    "Return Burda's network of one stochastic layer (Burda et al., Importance Weighted Autoencoders, 2016, section 5).",
    paper="Burda et al., Importance Weighted Autoencoders (2016)",
    equation="-E[log 1/K Σ_k p(x, z_k) / q(z_k|x)], K = 50",
    purpose="a better likelihood than the ELBO gives, for K passes through the decoder",
    losses={"iwae": {"num_samples": 50}},
    data=_BINARY,
    training=_BURDA,
)

miwae = variant(
    fully_connected,
    "miwae",
    "Return Burda's network for MIWAE (Rainforth et al., Tighter Variational Bounds are Not Necessarily Better, 2018).",
    paper="Rainforth et al., Tighter Variational Bounds are Not Necessarily Better (2018)",
    equation="-1/M Σ_m E[log 1/K Σ_k p(x, z_mk) / q(z_mk|x)], M = K = 8",
    purpose="IWAE's decoder with an encoder whose gradient is less noisy",
    losses={"iwae": {"num_samples": 64, "num_bounds": 8}},
    data=_BINARY,
    training=_BURDA,
)

ciwae = variant(
    fully_connected,
    "ciwae",
    "Return Burda's network for CIWAE (Rainforth et al., Tighter Variational Bounds are Not Necessarily Better, 2018).",
    paper="Rainforth et al., Tighter Variational Bounds are Not Necessarily Better (2018); gradient of Tucker et al. (2019)",
    equation="-β ELBO - (1 - β) IWAE, β = 0.5, K = 64, doubly reparameterised gradient",
    purpose="between VAE and IWAE: a posterior that stays good under a tight bound",
    losses={"iwae": {"num_samples": 64, "elbo_share": 0.5, "gradient": "dreg"}},
    data=_BINARY,
    training=_BURDA,
)

# -- disentangling: four convolutions, a fully connected layer or two, ten latent dimensions

capacity_vae = variant(
    convolutional,
    "capacity_vae",
    "Return the network of Burgess et al., Understanding disentangling in beta-VAE, 2018, appendix A.2.",
    paper="Burgess et al., Understanding disentangling in β-VAE (2018)",
    equation="-E_q[log p(x|z)] + γ |KL(q(z|x) ‖ N(0, I)) - C|, γ = 1000, C from 0 to 25 nats in 100,000 steps",
    purpose="disentangling without β-VAE's blur: the code's capacity grows as training goes on",
    losses={
        "nll": {},
        "kl": {"weight": 1000.0, "capacity": {"component": "LinearSchedule", "end": 25.0, "length": 100_000}},
    },
    defaults={"channels": (32, 32, 32, 32), "hidden": (256, 256)},
    training={"batch_size": 64, "learning_rate": 5e-4, "optimizer": "adam", "schedule": "constant"},
)

beta_tc_vae = variant(
    convolutional,
    "beta_tc_vae",
    "Return the network that β-TCVAE is commonly compared on (Locatello et al., Challenging Common Assumptions, 2019).",
    paper="Chen et al., Isolating Sources of Disentanglement in VAEs (2018)",
    equation="-E_q[log p(x|z)] + MI(z; n) + β TC(z) + Σ_d KL(q(z_d) ‖ p(z_d)), β = 6",
    purpose="independent latent dimensions: the penalty falls on their total correlation alone",
    losses={"nll": {}, "tc": {"alpha": 1.0, "beta": 6.0, "gamma": 1.0, "estimator": "weighted"}},
    training={"batch_size": 256, "learning_rate": 1e-3, "optimizer": "adam", "schedule": "constant"},
)

factor_vae = variant(
    convolutional,
    "factor_vae",
    "Return the network of Kim & Mnih, Disentangling by Factorising, 2018, table 1.",
    paper="Kim & Mnih, Disentangling by Factorising (2018)",
    equation="-E_q[log p(x|z)] + KL(q(z|x) ‖ N(0, I)) + γ E[log D(z) / (1 - D(z))], γ = 35",
    purpose="independent latent dimensions, their dependence measured by a discriminator; works in small batches",
    losses={
        "nll": {},
        "kl": {},
        "factor": {"weight": 35.0, "width": 1000, "depth": 6, "discriminator_learning_rate": 1e-4},
    },
    defaults={"hidden": (128,)},
    training={"batch_size": 64, "learning_rate": 1e-4, "optimizer": "adam", "schedule": "constant"},
)

_DIP = {"batch_size": 64, "learning_rate": 1e-4, "optimizer": "adam", "schedule": "constant"}

dip_vae_i = variant(
    convolutional,
    "dip_vae_i",
    "Return the convolutional network of Kumar et al., Variational Inference of Disentangled Latent Concepts, 2018.",
    paper="Kumar et al., Variational Inference of Disentangled Latent Concepts (DIP-VAE, 2018)",
    equation="ELBO's two terms + 10 Σ_{i≠j} C_ij² + 100 Σ_i (C_ii - 1)², C = Cov[μ(x)]",
    purpose="uncorrelated latent means at little cost; no discriminator, no estimate of densities",
    losses={"nll": {}, "kl": {}, "dip": {"kind": "i", "off_diagonal": 10.0, "diagonal": 100.0}},
    training=_DIP,
)

dip_vae_ii = variant(
    convolutional,
    "dip_vae_ii",
    "Return the convolutional network of Kumar et al., Variational Inference of Disentangled Latent Concepts, 2018.",
    paper="Kumar et al., Variational Inference of Disentangled Latent Concepts (DIP-VAE, 2018)",
    equation="ELBO's two terms + 10 Σ_{i≠j} C_ij² + 10 Σ_i (C_ii - 1)², C = Cov[z]",
    purpose="as dip_vae_i, where the number of latent dimensions exceeds that of the factors",
    losses={"nll": {}, "kl": {}, "dip": {"kind": "ii", "off_diagonal": 10.0, "diagonal": 10.0}},
    training=_DIP,
)

# -- the aggregate posterior against the prior

info_vae = variant(
    convolutional,
    "info_vae",
    "Return a convolutional network for InfoVAE (Zhao et al., InfoVAE: Information Maximizing Variational Autoencoders, 2017).",
    paper="Zhao et al., InfoVAE: Information Maximizing Variational Autoencoders (2017)",
    equation="-E_q[log p(x|z)] + (1 - α) KL(q(z|x) ‖ p) + (α + λ - 1) MMD(q(z), p), α = 0.5, λ = 100",
    purpose="codes that keep information under a strong decoder and still fill the prior",
    losses={"nll": {}, "kl": {"weight": 0.5}, "mmd": {"weight": 99.5, "kernel": "rbf"}},
    defaults={"image_size": 28, "channels": (64, 128), "hidden": (1024,)},
    data=_BINARY,
    training={"batch_size": 64, "learning_rate": 1e-3},
)

wae = variant(
    convolutional,
    "wae",
    "Return the network of Tolstikhin et al., Wasserstein Auto-Encoders, 2018, appendix C (MNIST); it encodes to a point.",
    paper="Tolstikhin et al., Wasserstein Auto-Encoders (2018), WAE-MMD",
    equation="‖x - x̂‖² + λ MMD(q(z), N(0, I)), λ = 10, inverse multiquadratic kernel",
    purpose="sharper than a VAE and still to be sampled: only the codes of all images together have to look like the prior",
    losses={"mse": {}, "mmd": {"weight": 10.0, "kernel": "imq"}},
    defaults={
        "image_size": 28,
        "latent_dim": 8,
        "channels": (128, 256, 512, 1024),
        "hidden": (),
        "norm": "batch",
        "deterministic": True,
        "likelihood": "gaussian_fixed",
    },
    training={"batch_size": 100, "learning_rate": 1e-3, "optimizer": "adam"},
)

aae = variant(
    fully_connected,
    "aae",
    "Return the network of Makhzani et al., Adversarial Autoencoders, 2015 (MNIST); it encodes to a point.",
    paper="Makhzani et al., Adversarial Autoencoders (2015)",
    equation="‖x - x̂‖² + softplus(-D(z)), D tells codes from samples of N(0, I)",
    purpose="any prior that can be sampled, its density unknown",
    losses={"mse": {}, "aae": {"width": 1000, "depth": 2}},
    defaults={
        "latent_dim": 8,
        "hidden": (1000, 1000),
        "activation": "relu",
        "deterministic": True,
        "likelihood": "gaussian_fixed",
    },
    training={"batch_size": 100, "learning_rate": 1e-3, "optimizer": "adam"},
)
