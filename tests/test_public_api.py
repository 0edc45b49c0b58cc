"""Public names and command-line options are promises: adding or removing one must be seen in this file and in the CHANGELOG."""

import importlib
import inspect

import pytest

import omnivae
from omnivae.cli.main import COMMANDS
from omnivae.cli.parsing import option_names
from omnivae.cli.train import FLAT, build_parser
from omnivae.recipes import RECIPES


def words(text):
    return text.split()


NAMES = words("""
    KL L1 MSE MSSSIM NLL VAE Batch BernoulliLikelihood CategoricalLikelihood Component ConstantSchedule
    CosineSchedule CyclicalSchedule DataConfig DiagonalGaussian DiscretizedLogisticLikelihood GaussianLikelihood
    GaussianPosterior LaplaceLikelihood Latent LatentDataset LinearSchedule PosteriorStore StandardNormal TransVAE
    VAEOutput beta_vae cnn_vae
    compare conv_vae evaluate from_config kl_autoencoder kl_divergence load_data preprocess_image save_image swin_vae
    to_config vit_vae mixture_vae vamp_vae
    flow_prior_vae flow_vae gumbel_softmax_vae hyperspherical_vae iaf_vae
    autoencoder fsq_vae full_covariance_vae lfq_vae residual_vq_vae vq_vae
    dfc_vae eq_vae ms_ssim_vae sigma_vae vae_gan
    iwae miwae ciwae capacity_vae beta_tc_vae factor_vae dip_vae_i dip_vae_ii info_vae wae aae
    Tiled HierarchicalVAE hierarchical_vae ladder_vae deep_hierarchical_vae lite_vae
    c_vae text_vae m2_vae
    MaisiVAE BetaVae25D BetaVaeMonai
    VideoVAE inflate
""")

TRAIN = words("""
    accept_changes checkpoint
    config data.binarize data.channels data.clips data.flip data.format data.frame_stride data.image_size data.limit
    data.num_frames data.num_workers data.path
    data.tokens data.lowercase data.max_length data.min_count data.max_vocabulary data.text_column
    data.random_crop data.cond data.labels_per_class data.labelled_share
    data.cache data.channel_axis data.clip data.download data.image_column data.input_range data.label_column
    data.on_error data.pages_as_channels data.resolutions data.verify data.split_seed
    data.test_fraction data.val_fraction data.value_range
    data.volume.cache_gb data.volume.channel_names data.volume.clip data.volume.deviations data.volume.flip_axes
    data.volume.foreground data.volume.intensity data.volume.level data.volume.orientation data.volume.patch_size
    data.volume.patches_per_volume data.volume.percentiles data.volume.spacing data.volume.unit data.volume.window
    losses.aae.depth losses.aae.discriminator_learning_rate losses.aae.weight losses.aae.width
    losses.dip.diagonal losses.dip.kind losses.dip.off_diagonal losses.dip.weight losses.factor.depth
    losses.factor.discriminator_learning_rate losses.factor.weight losses.factor.width losses.iwae.elbo_share
    losses.iwae.gradient losses.iwae.num_bounds losses.iwae.num_samples losses.iwae.weight losses.mmd.bandwidth
    losses.mmd.kernel losses.mmd.scales losses.mmd.unbiased losses.mmd.weight losses.tc.alpha losses.tc.beta
    losses.tc.dataset_size losses.tc.estimator losses.tc.gamma losses.tc.weight
    losses.gan.adaptive losses.m2.alpha losses.m2.per_element losses.m2.weight
    losses.gan.channels losses.gan.discriminator_learning_rate losses.gan.loss losses.gan.num_layers
    losses.gan.start_step losses.gan.weight losses.kl.capacity losses.kl.free_bits losses.kl.free_bits_over
    losses.kl.per_element
    losses.kl.weight losses.commitment.per_element losses.commitment.weight
    losses.entropy.per_element losses.entropy.weight losses.norm.per_element losses.norm.weight
    losses.l1.per_element losses.l1.weight losses.lpips.axes losses.lpips.network
    losses.lpips.slices losses.lpips.value_range losses.lpips.weight losses.lpips.weights_path
    losses.ms_ssim.value_range losses.ms_ssim.weight
    losses.mse.per_element losses.mse.weight losses.nll.num_samples losses.nll.per_element losses.nll.weight
    losses.dfc.model losses.dfc.stages losses.dfc.value_range losses.dfc.weight losses.dfc.weights_path
    losses.eq.per_element losses.eq.scales losses.eq.weight
    losses.vae_gan.adversarial losses.vae_gan.channels losses.vae_gan.discriminator_learning_rate losses.vae_gan.layer
    losses.vae_gan.num_layers losses.vae_gan.weight
    losses.vf.adaptive losses.vf.margin_cosine losses.vf.margin_distance losses.vf.model losses.vf.value_range
    losses.vf.weight losses.vf.weights_path output report training.accumulate training.batch_size training.betas
    training.channels_last training.checkpoint_every training.compile training.corrupt training.corrupt_strength
    training.devices training.draw_every
    training.ema training.freeze training.freeze_epochs training.lr_multipliers training.gradient_checkpointing
    training.gradient_clip
    training.gradient_clip_algorithm training.learning_rate training.log_every training.max_steps
    training.num_epochs training.num_nodes training.on_collapse training.on_nonfinite training.optimizer
    training.precision training.schedule training.seed training.strategy training.val_images
    training.validate_every training.warmup_steps training.weight_decay
""")

RECIPE_ARGUMENTS = {
    "gumbel_softmax_vae": """
        channels dim final_temperature image_size in_channels latent likelihood num_categories num_groups rate recipe
        straight_through temperature value_range
    """,
    "hyperspherical_vae": """
        channels dim image_size in_channels latent_dim likelihood recipe value_range
    """,
    "text_vae": """
        cell decoder_embedding_dim decoder_hidden decoder_layers embedding_dim encoder_layers hidden latent_dim lowercase
        max_length recipe tied tokens vocabulary word_dropout
    """,
    "flow_vae": """
        channels dim flow image_size in_channels latent_dim likelihood num_flows recipe value_range
    """,
    "iaf_vae": """
        channels context_dim dim hidden image_size in_channels latent_dim likelihood num_flows recipe value_range
    """,
    "flow_prior_vae": """
        channels dim flow image_size in_channels latent_dim likelihood num_flows recipe value_range
    """,
    "transvae": """
        base_dims compression_ratio depths ffn head_dim in_channels input_resolution latent_dim likelihood mlp_ratio
        norm num_conv_stages recipe stem use_absolute_positions use_conv_ffn use_dc_path use_rope value_range
        variant
    """,
    "beta_vae_25d": """
        backbone compatible conv_blocks decoder_stages drop_path_rate head_expansion_ratio head_pool in_channels
        in_stack_depth input_spatial_size latent_dim likelihood match_input norm_name out_stack_depth pretrained recipe
        stem_kernel_size stem_stride upsample_mode upsample_pre_conv value_range
    """,
    "beta_vae_monai": """
        act bias channels dropout in_shape inter_channels inter_dilations kernel_size latent_size likelihood match_input
        norm num_inter_units num_res_units out_channels recipe spatial_dims strides up_kernel_size use_sigmoid value_range
    """,
    "maisi_vae": """
        attention_levels dim_split in_channels include_fc latent_dim likelihood modality norm_eps norm_float16
        norm_num_groups num_channels num_res_blocks num_splits out_channels recipe use_combined_linear use_convtranspose
        value_range with_decoder_nonlocal_attn with_encoder_nonlocal_attn
    """,
    "monai_kl": """
        attention_levels channels dim eps in_channels include_fc latent_dim likelihood num_groups num_res_blocks
        out_channels recipe use_combined_linear use_convtranspose value_range with_decoder_nonlocal_attn
        with_encoder_nonlocal_attn
    """,
    "video_vae": """
        base_channels in_channels latent_dim likelihood maisi_checkpoint maisi_partial maisi_stack_size mid_attention num_groups
        num_res_blocks overlap recipe scaling_factor stack_size time_stride use_maisi value_range
    """,
    "conv_vae": """
        channels dim image_size in_channels latent latent_dim likelihood norm recipe value_range
    """,
    "m2_vae": """
        dim hidden image_size in_channels latent_dim likelihood num_classes recipe value_range
    """,
    "c_vae": """
        channels cond_dim conditioning dim image_size in_channels latent latent_dim learned_prior likelihood norm recipe
        value_range
    """,
    "beta_vae": """
        channels image_size in_channels latent_dim likelihood recipe value_range
    """,
    "kl_autoencoder": """
        attention_levels channels dim in_channels input_resolution latent_dim likelihood mid_attention num_groups num_res_blocks
        recipe value_range
    """,
    "cnn_vae": """
        base_dims depths in_channels input_resolution latent_dim likelihood recipe value_range variant
    """,
    "vit_vae": """
        depth head_dim in_channels input_resolution latent_dim likelihood recipe value_range variant width
    """,
    "swin_vae": """
        depths dims head_dim in_channels input_resolution latent_dim likelihood patch_size recipe value_range
        variant window_size
    """,
    "full_covariance_vae": """
        channels dim image_size in_channels latent_dim likelihood recipe value_range
    """,
    "autoencoder": """
        channels dim image_size in_channels latent latent_dim likelihood recipe value_range
    """,
    "vq_vae": """
        channels decay dim image_size in_channels latent_dim likelihood num_codes recipe revive_below value_range
    """,
    "residual_vq_vae": """
        channels decay dim image_size in_channels latent_dim likelihood num_books num_codes recipe revive_below value_range
    """,
    "fsq_vae": """
        channels dim image_size in_channels levels likelihood recipe value_range
    """,
    "lfq_vae": """
        channels dim image_size in_channels latent_dim likelihood recipe value_range
    """,
    "mixture_vae": """
        channels image_size in_channels latent_dim likelihood num_components recipe value_range
    """,
    "hierarchical_vae": """
        channels dim image_size in_channels inference latent_dims likelihood recipe value_range widths
    """,
    "ladder_vae": """
        dim image_size in_channels latent_dims likelihood norm recipe value_range widths
    """,
    "deep_hierarchical_vae": """
        block channels dim image_size in_channels latent_dim likelihood num_groups recipe relation value_range
    """,
    "lite_vae": """
        channels dim encoder_channels encoder_multipliers in_channels input_resolution latent_dim likelihood mid_attention
        num_groups num_res_blocks recipe value_range
    """,
    "cogvideox_vae": """
        activation channels eps in_channels latent_dim likelihood num_groups num_res_blocks out_channels recipe time_stride
        value_range
    """,
    "dc_ae": """
        activations block_types channels decoder_block_types decoder_channels decoder_multiscales decoder_num_blocks downsample
        head_dim in_channels in_shortcut last_activation latent_dim likelihood multiscales norms num_blocks out_shortcut recipe
        upsample value_range
    """,
    "vamp_vae": """
        channels image_size in_channels latent_dim likelihood num_components recipe value_range
    """,
}

CONVOLUTIONAL = "channels deterministic dim hidden image_size in_channels latent_dim likelihood norm recipe value_range"
FULLY_CONNECTED = "activation deterministic dim hidden image_size in_channels latent_dim likelihood recipe value_range"
for name in words(
    "capacity_vae beta_tc_vae factor_vae dip_vae_i dip_vae_ii info_vae wae sigma_vae ms_ssim_vae dfc_vae vae_gan"
):
    RECIPE_ARGUMENTS[name] = CONVOLUTIONAL
for name in words("iwae miwae ciwae aae"):
    RECIPE_ARGUMENTS[name] = FULLY_CONNECTED

RECIPE_ARGUMENTS["eq_vae"] = RECIPE_ARGUMENTS["kl_autoencoder"]

OPTIONS = {
    "inspect": """
        data.lowercase data.max_length data.max_vocabulary data.min_count data.text_column data.tokens
        data.cond data.labelled_share data.labels_per_class config-out data.channel_axis data.channels data.clip data.download
        data.format data.image_column data.image_size
        data.input_range data.label_column data.limit data.on_error data.pages_as_channels data.split_seed
        data.test_fraction data.val_fraction data.value_range data.verify json picture seed html on_gaps series
        data.clips data.frame_stride data.num_frames
    """,
    "inspect-checkpoint": "config-out depth download entry into json key-map layout output partial set trials url",
    "doctor": "json look",
    "encode": """
        batch_size data.channels data.image_size data.limit data.on_error data.path data.split dtype memory mode num_workers
        on_gaps output percentiles precision series shard_mib time unit window
    """,
    "prior": f"""
        data.path output prior.depth prior.dropout prior.num_heads prior.width
        {" ".join(option for option in TRAIN if option.startswith("training."))}
    """,
    "decode": "batch_size format keys memory mode model output precision sample seed",
    "calibrate": """
        batch_size data.image_size data.limit data.on_error data.path data.split num_workers precision store
    """,
    "evaluate": """
        batch_size checkpoint data.image_size data.limit data.num_workers data.path data.split data_dir factors json metrics
        num_samples_nll precision resolution seed world
    """,
    "compare": "bootstrap common flips json metrics png seed",
    "reconstruct": """
        cond format keep_identifiers labels measure memory mode on_error on_gaps output percentiles precision report series time to
        unit window
    """,
    "transfer": "data.path n output precision to",
    "sample": "cond levels n output precision seed size temperature top_k",
    "interpolate": "cond mode output precision steps to",
    "traverse": "cond image num_dimensions output precision reach span steps",
    "anomaly": """
        data.limit data.path masks memory mode normal normal_label num_samples_nll num_worst output precision rate scores seed
        smooth
    """,
    "denoise": "clean cond data.limit data.path output precision seed",
    "impute": "cond mask method num_samples output precision seed",
    "arithmetic": "cond data.path minus minus_label output plus plus_label precision strengths to",
    "report": "data.path output",
    "inflate": "inflation output overlap stack_size time_kernel time_stride",
    "replay": "",
    "plan": "input measure memory",
    "zoo": "json",
    "bench-family": f"""
        batch_size channels images latent_dim learning_rate metrics num_samples_nll output recipes seeds steps
        {" ".join(option for option in TRAIN if option.startswith("data.") and option != "data.path")}
    """,
    "phantoms": "conditions count format kind lesions output seed size spacing",
    "demo": "output steps",
}

POSITIONALS = {
    "inspect": "path",
    "inspect-checkpoint": "file",
    "doctor": "run",
    "encode": "model files",
    "prior": "model",
    "decode": "latents",
    "calibrate": "model",
    "evaluate": "model",
    "compare": "a b",
    "reconstruct": "model files",
    "transfer": "model",
    "sample": "model",
    "interpolate": "model first second",
    "traverse": "model",
    "anomaly": "model",
    "arithmetic": "model",
    "denoise": "model files",
    "impute": "model files",
    "report": "model",
    "inflate": "model",
    "replay": "record",
    "plan": "model",
    "zoo": "recipes",
    "bench-family": "data_path",
    "phantoms": "",
    "demo": "",
}

FLAT_FLAGS = words("--data_dir --output_dir --batch_size --num_epochs --learning_rate --num_gpus --distributed")


def parser_of(command):
    module = importlib.import_module(COMMANDS[command][0])
    return module.PARSERS[command]() if hasattr(module, "PARSERS") else module.build_parser()


def assert_frozen(what, found, promised):
    added, removed = sorted(set(found) - set(promised)), sorted(set(promised) - set(found))
    assert added == removed == [], (
        f"{what} changed: added {added or 'none'}, removed {removed or 'none'}. If that is intended, update the list in "
        "tests/test_public_api.py and say it in CHANGELOG.md"
    )


def options(parser):
    """Return what a user may give: without help, and without the names of whole sections."""
    names = [name for name in option_names(parser) if name != "help" and not name.endswith(".help")]
    return [name for name in names if not any(other.startswith(f"{name}.") for other in names)]


def test_public_names():
    assert_frozen("omnivae.__all__", omnivae.__all__, NAMES)
    assert len(omnivae.__all__) == len(set(omnivae.__all__))


@pytest.mark.parametrize("name", omnivae.__all__)
def test_every_public_name_can_be_imported_and_is_documented(name):
    public = getattr(importlib.import_module("omnivae"), name)
    assert (inspect.getdoc(public) or "").strip(), f"omnivae.{name} has no docstring"
    assert public.__doc__, f"omnivae.{name} inherits its docstring"


@pytest.mark.parametrize("name", omnivae.__all__)
def test_every_public_callable_is_annotated(name):
    public = getattr(omnivae, name)
    function = public.__init__ if inspect.isclass(public) else public
    if not inspect.isfunction(function):
        return
    bare = [
        p.name for p in inspect.signature(function).parameters.values() if p.annotation is p.empty and p.name != "self"
    ]
    assert bare == []


def test_commands():
    assert_frozen("the commands", COMMANDS, ["train", *OPTIONS])
    for module, sentence in COMMANDS.values():
        assert sentence
        importlib.import_module(module)


@pytest.mark.parametrize("recipe", RECIPES)
def test_options_of_train(recipe):
    assert_frozen("the recipes", RECIPES, RECIPE_ARGUMENTS)
    expected = [*TRAIN, *(f"model.{name}" for name in RECIPE_ARGUMENTS[recipe].split())]
    assert_frozen(f"the options of omnivae train with the recipe {recipe}", options(build_parser(recipe)), expected)


@pytest.mark.parametrize("command", OPTIONS)
def test_options_of_the_other_commands(command):
    parser = parser_of(command)
    assert_frozen(f"the options of omnivae {command}", options(parser), OPTIONS[command].split())
    positionals = [action.dest for action in parser._actions if not action.option_strings]
    assert positionals == POSITIONALS[command].split()


@pytest.mark.parametrize("command", ["train", *OPTIONS])
def test_every_option_says_what_it_is(command):
    parser = build_parser() if command == "train" else parser_of(command)
    silent = [
        action.dest
        for action in parser._actions
        if not action.help and action.dest in {*options(parser), *POSITIONALS.get(command, "").split()}
    ]
    assert silent == []


def test_flat_flags_of_other_code_bases():
    assert_frozen("the flat flags", FLAT, FLAT_FLAGS)
