"""A base as an ordinary diffusers pipeline."""

from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline


def pipeline_of(base):
    """Put a base's parts into the pipeline a stranger would load."""
    shared = {"vae": base.vae, "unet": base.unet, "scheduler": base.scheduler}
    if base.facts.family == "sdxl":
        pipe = StableDiffusionXLPipeline(
            text_encoder=base.text_encoders["text_encoder"],
            text_encoder_2=base.text_encoders["text_encoder_2"],
            tokenizer=base.tokenizers["text_encoder"],
            tokenizer_2=base.tokenizers["text_encoder_2"],
            add_watermarker=False,
            **shared,
        )
    else:
        pipe = StableDiffusionPipeline(
            text_encoder=base.text_encoder,
            tokenizer=base.tokenizer,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
            **shared,
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe
