"""Training recipes of the bundled models: autoencoder, UNet and transformer. Not part of the wheel.

    python -m recipes.autoencoder --work WORK
    python -m recipes.unet --work WORK-UNET --base WORK --minutes 80 --seed 0
    python -m recipes.transformer --work WORK-DIT --base WORK --minutes 80 --seed 0
    python -m recipes.decoder --work WORK-DECODER --start WORK/vae
    python -m recipes.gates --model WORK-UNET/pipeline

Each training command resumes from its checkpoint when it is run again.
"""
