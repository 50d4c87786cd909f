"""Views of an image for test-time augmentation, as data.

A view is a step of `STEPS`, or several steps in order, joined by "+".
"""

#: (down, right) in pixels
SHIFTS = {
    "up1": (-1, 0), "down1": (1, 0), "left1": (0, -1), "right1": (0, 1),
    "up2": (-2, 0), "down2": (2, 0), "left2": (0, -2), "right2": (0, 2),
}  # fmt: skip
#: factors
BRIGHTNESS = {"brighter": 1.05, "darker": 0.95}
STEPS = ("identity", "flip", *SHIFTS, *BRIGHTNESS)

# Views and their weights.
IDENTITY = {"identity": 1.0}
FLIP = {"identity": 1.0, "flip": 1.0}
# SAMResNet's views, without two faults of its code: its "left1" pads the side that it cuts, so the
# picture does not move, and it clamps normalised pixels to [0, 1], which cuts off half of them.
SAM_VIEWS = {
    "identity": 1.5, "flip": 1.0, "up1": 1.0, "left1": 1.0, "brighter": 1.0, "darker": 1.0,
}  # fmt: skip
# All of the paper's transformations. The first six are `SAM_VIEWS`.
SAM_LADDER = SAM_VIEWS | dict.fromkeys(("down1", "right1", "up2", "left2", "down2", "right2"), 1.0)
# airbench94's views (Jordan 2024). The two diagonal shifts together weigh as much as the picture
# without a shift, and so do their mirror images.
SIX_VIEWS = {
    "identity": 2.0, "up1+left1": 1.0, "down1+right1": 1.0,
    "flip": 2.0, "up1+left1+flip": 1.0, "down1+right1+flip": 1.0,
}  # fmt: skip
