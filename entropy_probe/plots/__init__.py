"""Draw every result. A plot takes a result and returns a figure and the data in it.

Functions named `draw_...` draw on given axes and return the data.
"""

from entropy_probe.extras import name_missing_extra

with name_missing_extra():
    from entropy_probe.plots.baselines import profile_changes
    from entropy_probe.plots.comparison import (
        draw_growth,
        drift_of_runs,
        growth_of_runs,
        layers_of_runs,
        noise_levels_of_runs,
    )
    from entropy_probe.plots.drift import draw_drift, draw_removed, drift_by_law
    from entropy_probe.plots.entropy_growth import (
        draw_law,
        draw_layers_by_depth,
        entropy_by_layer,
        entropy_over_layers,
    )
    from entropy_probe.plots.images import draw_map, image_grid, image_strip, maps_over_images
    from entropy_probe.plots.layers import draw_head_drift, draw_heads, draw_layers, layers_and_heads
    from entropy_probe.plots.losses import draw_loss, loss_by_factor
    from entropy_probe.plots.panel import FORMATS, WIDTHS, Format, Panel, Width, figure_bytes, one_of, print_theme
    from entropy_probe.plots.panels import Plot
    from entropy_probe.plots.quality import draw_change, quality_by_kappa, quality_by_law
    from entropy_probe.plots.scale_factors import (
        draw_factors,
        draw_factors_by_layer,
        draw_head_factors,
        draw_step_factors,
        factors_by_layer,
    )
    from entropy_probe.plots.svg import inline_svg
    from entropy_probe.plots.theme import PALETTE, page_theme, theme
    from entropy_probe.plots.timesteps import draw_timesteps, entropy_against_timestep

__all__ = [
    "FORMATS",
    "PALETTE",
    "WIDTHS",
    "Format",
    "Panel",
    "Plot",
    "Width",
    "draw_change",
    "draw_drift",
    "draw_factors",
    "draw_factors_by_layer",
    "draw_growth",
    "draw_head_drift",
    "draw_head_factors",
    "draw_heads",
    "draw_law",
    "draw_layers",
    "draw_layers_by_depth",
    "draw_loss",
    "draw_map",
    "draw_removed",
    "draw_step_factors",
    "draw_timesteps",
    "drift_by_law",
    "drift_of_runs",
    "entropy_against_timestep",
    "entropy_by_layer",
    "entropy_over_layers",
    "factors_by_layer",
    "figure_bytes",
    "growth_of_runs",
    "image_grid",
    "image_strip",
    "inline_svg",
    "layers_and_heads",
    "layers_of_runs",
    "loss_by_factor",
    "maps_over_images",
    "noise_levels_of_runs",
    "one_of",
    "page_theme",
    "print_theme",
    "profile_changes",
    "quality_by_kappa",
    "quality_by_law",
    "theme",
]
