"""What settings are called in other projects; an unknown key of such a name is answered with ours.

`*` stands for every stream. Names that are keys of ours somewhere in the tree need no entry: they are found there. One
that is there several times has an entry for the one that is meant.
"""

from __future__ import annotations

_LR = ("training.optimizer.lr",)
_WARMUP = ("training.optimizer.warmup",)
_BATCH = ("streams.*.batch",)
_STEPS = ("training.steps",)
_ACCUMULATE = ("training.accumulate",)
_DROPOUT = ("condition.cfg_dropout",)
_CFG = ("streams.*.sampling.cfg_scale",)
_SAMPLING_STEPS = ("streams.*.sampling.steps",)
_PRECISION = ("training.precision",)
_DATA = ("streams.*.data.path",)
_RUN = ("run",)
_SAVE = ("training.save_every",)
_SIZE = ("streams.*.media.size",)
_EMA = ("training.ema.decay",)
_CLIP = ("training.optimizer.clip",)
_RATE = ("streams.*.media.sample_rate",)
_DEPTH = ("trunk.mmdit.double_blocks", "trunk.mmdit.single_blocks", "trunk.sit.depth")
_TOKENS = ("condition.text.max_words", "condition.encoder.max_tokens")

ALIASES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("learning_rate", "base_lr", "max_lr", "peak_lr", "base_learning_rate", "blr"), _LR),
    **dict.fromkeys(("warmup_steps", "lr_warmup_steps", "num_warmup_steps", "lr_warmup", "warmup_iters"), _WARMUP),
    "warmup": _WARMUP,  # of the learning rate, and not of an alignment term
    **dict.fromkeys(
        ("lr_decay_steps", "decay_steps", "cooldown_steps", "num_decay_steps"), ("training.optimizer.cooldown",)
    ),
    **dict.fromkeys(("wd",), ("training.optimizer.weight_decay",)),
    **dict.fromkeys(("beta1", "beta2", "adam_beta1", "adam_beta2", "adam_betas"), ("training.optimizer.betas",)),
    **dict.fromkeys(("adam_epsilon", "epsilon"), ("training.optimizer.eps",)),
    **dict.fromkeys(("adam_weight_decay",), ("training.optimizer.weight_decay",)),
    **dict.fromkeys(("max_grad_norm", "grad_clip", "gradient_clip_val", "clip_grad", "gradient_clipping"), _CLIP),
    **dict.fromkeys(("opt", "adamw", "optimizer_type"), ("training.optimizer",)),
    **dict.fromkeys(("batch_size", "train_batch_size", "global_batch_size", "micro_batch_size", "bs"), _BATCH),
    **dict.fromkeys(
        ("per_device_train_batch_size", "per_gpu_batch_size", "batch_size_per_gpu", "local_batch_size"), _BATCH
    ),
    **dict.fromkeys(("max_steps", "max_train_steps", "num_steps", "total_steps", "train_steps", "max_iter"), _STEPS),
    **dict.fromkeys(("iterations", "num_iterations", "max_iters", "n_steps", "training_steps"), _STEPS),
    **dict.fromkeys(("epochs", "num_epochs", "max_epochs", "num_train_epochs", "n_epochs"), _STEPS),
    **dict.fromkeys(
        ("gradient_accumulation_steps", "accumulate_grad_batches", "grad_accum", "accum_iter"), _ACCUMULATE
    ),
    **dict.fromkeys(("gradient_accumulation", "grad_accumulation_steps", "grad_accum_steps"), _ACCUMULATE),
    **dict.fromkeys(("mixed_precision", "amp", "dtype", "fp16", "bf16", "autocast"), _PRECISION),
    **dict.fromkeys(("num_workers", "dataloader_num_workers", "n_workers", "num_data_workers"), ("training.workers",)),
    **dict.fromkeys(("torch_compile", "use_compile", "enable_compile"), ("training.compile",)),
    **dict.fromkeys(
        ("gradient_checkpointing", "activation_checkpointing", "grad_checkpointing", "use_checkpoint"),
        ("training.recompute",),
    ),
    **dict.fromkeys(("accelerator", "gpu", "gpus", "cuda"), ("training.device",)),
    **dict.fromkeys(("checkpointing_steps", "save_steps", "save_every_n_steps", "ckpt_every", "save_interval"), _SAVE),
    **dict.fromkeys(("checkpoint_every", "save_freq", "checkpoint_interval"), _SAVE),
    **dict.fromkeys(("checkpoints_total_limit", "save_total_limit", "keep_last", "max_to_keep"), ("training.keep",)),
    **dict.fromkeys(("ema_decay", "ema_rate", "ema_beta", "ema_momentum", "ema_halflife"), _EMA),
    **dict.fromkeys(("random_seed", "global_seed", "manual_seed"), ("seed",)),
    **dict.fromkeys(
        ("output_dir", "out_dir", "outdir", "save_dir", "results_dir", "logdir", "log_dir", "exp_dir"), _RUN
    ),
    **dict.fromkeys(("run_name", "exp_name", "experiment_name", "run_dir", "workdir", "work_dir", "output"), _RUN),
    **dict.fromkeys(("resume", "resume_from_checkpoint", "resume_from"), _RUN),
    **dict.fromkeys(("use_wandb", "report_to", "wandb_project", "wandb_mode"), ("logging.wandb",)),
    **dict.fromkeys(("use_tensorboard", "tb"), ("logging.tensorboard",)),
    **dict.fromkeys(("data_path", "data_dir", "data_root", "dataset", "dataset_path", "train_data_dir"), _DATA),
    **dict.fromkeys(("root_dir", "image_folder", "instance_data_dir", "dataset_name", "train_dir", "datadir"), _DATA),
    **dict.fromkeys(
        ("val_data_dir", "validation", "val_data", "test_data", "eval_data", "heldout"), ("streams.*.val",)
    ),
    **dict.fromkeys(
        ("caption_column", "caption_key", "text_column", "caption_field"), ("streams.*.data.caption_fields",)
    ),
    **dict.fromkeys(("image_column", "image_key", "video_column", "audio_column"), ("streams.*.data.media_field",)),
    **dict.fromkeys(("label_column", "label_key", "class_column"), ("streams.*.data.label_field",)),
    **dict.fromkeys(("resolution", "image_size", "img_size", "crop_size", "sample_size", "height", "width_px"), _SIZE),
    **dict.fromkeys(("patch_size",), ("streams.*.media.patch",)),
    **dict.fromkeys(("center_crop", "random_crop"), ("streams.*.media.crop",)),
    **dict.fromkeys(("random_flip", "hflip", "horizontal_flip", "xflip"), ("streams.*.media.flip",)),
    **dict.fromkeys(("num_frames", "n_frames", "clip_length", "sample_n_frames"), ("streams.*.media.frames",)),
    **dict.fromkeys(("frame_rate", "sample_fps", "target_fps"), ("streams.*.media.fps",)),
    **dict.fromkeys(("sampling_rate", "sr", "samplerate"), _RATE),
    **dict.fromkeys(("duration", "audio_length", "sample_length", "clip_seconds"), ("streams.*.media.seconds",)),
    **dict.fromkeys(("hop_length", "hop_size"), ("streams.*.media.hop",)),
    **dict.fromkeys(
        ("vae", "vae_path", "vae_ckpt", "autoencoder_path", "pretrained_vae"), ("streams.*.media.autoencoder",)
    ),
    **dict.fromkeys(("cfg", "guidance", "guidance_scale", "guidance_weight", "classifier_free_guidance"), _CFG),
    **dict.fromkeys(
        ("num_inference_steps", "sampling_steps", "num_sampling_steps", "inference_steps", "nfe"), _SAMPLING_STEPS
    ),
    **dict.fromkeys(("sampler", "scheduler", "ode_solver", "sampling_method"), ("streams.*.sampling.solver",)),
    **dict.fromkeys(
        ("time_shift", "flow_shift", "timestep_shift"), ("streams.*.timestep.shift", "streams.*.sampling.shift")
    ),
    **dict.fromkeys(("timestep_sampling", "weighting_scheme", "path_type", "t_dist"), ("streams.*.timestep.kind",)),
    **dict.fromkeys(("logit_mean", "p_mean"), ("streams.*.timestep.mean",)),
    **dict.fromkeys(("logit_std", "p_std"), ("streams.*.timestep.std",)),
    **dict.fromkeys(("class_dropout_prob", "caption_dropout", "uncond_prob", "cfg_prob"), _DROPOUT),
    **dict.fromkeys(("cond_dropout", "drop_prob", "p_uncond", "text_dropout", "conditioning_dropout_prob"), _DROPOUT),
    **dict.fromkeys(("text_encoder", "tokenizer_name", "text_encoder_path"), ("condition.encoder",)),
    **dict.fromkeys(("max_length", "max_seq_len", "max_sequence_length", "text_length", "context_length"), _TOKENS),
    **dict.fromkeys(("vocab_size",), ("condition.text.vocabulary",)),
    **dict.fromkeys(("conditioning", "condition_type", "class_cond", "class_conditional"), ("condition.kind",)),
    **dict.fromkeys(
        ("model", "arch", "architecture", "model_name", "backbone", "network"), ("trunk.kind", "trunk.mmdit.size")
    ),
    **dict.fromkeys(
        ("hidden_size", "hidden_dim", "d_model", "embed_dim", "n_embd"), ("trunk.mmdit.width", "trunk.sit.width")
    ),
    **dict.fromkeys(
        ("num_heads", "n_heads", "num_attention_heads", "n_head"), ("trunk.mmdit.heads", "trunk.sit.heads")
    ),
    **dict.fromkeys(("num_layers", "n_layers", "n_layer", "num_blocks"), _DEPTH),
    **dict.fromkeys(("proj_coeff", "repa_weight", "gamma", "alignment_weight"), ("alignment.ema_teacher.weight",)),
    **dict.fromkeys(("encoder_type", "enc_type", "repa_encoder"), ("streams.*.encoders",)),
    **dict.fromkeys(("masking_ratio", "mask_prob"), ("streams.*.mask_ratio",)),
    # What they were called here before.
    "modalities": ("streams",),
    "first_frame_share": ("streams.*.modes",),
    "condition_on": ("streams.*.modes",),
    "first_frame_noise": ("streams.*.condition_noise",),
}
