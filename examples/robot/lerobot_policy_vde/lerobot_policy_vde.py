"""What LeRobot imports at start: it registers the policies `vde_act` and `vde_diffusion`."""

import video_distilled_encoder.stacks.lerobot  # noqa: F401
