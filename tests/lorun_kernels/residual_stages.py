"""A residual network of stages, as the tests of StageWeights run it."""


def run(stages, image, weights=None):
    """Every stage added to its input; with StageWeights, on the weights that they lend."""
    for number, stage in enumerate(stages):
        if weights is None:
            image = image + stage(image)
        else:
            with weights.stage(number):
                image = image + stage(image)
    return image
