"""kdjax distill configs/imagenet/function_matching.py --teacher runs/resnet152

Function matching (Beyer et al., CVPR 2022, arXiv 2106.05237): a patient student and a consistent teacher. No labels; both see the
same crop, mixed with the same neighbour (mixup), at T = 1, for very long: 1,200 epochs of batch 4,096, Adam with a learning rate
of 0.03, weight decay 3e-4, 5,000 steps of warm-up, cosine, gradients clipped at 1, as in the released configuration. Needs
`kdjax data prepare imagenet2012` and a teacher: `kdjax convert resnet152.pth --network resnet152 --run runs/resnet152`.

Published top-1, not reproduced here: ResNet-50 82.8 after 9,600 epochs, from a BiT-M ResNet-152x2 at 83.0 (not verified). Not as
there: networks are the zoo's ResNets with BatchNorm instead of BiT's with GroupNorm, and Adam is AdamW. Weeks on one GPU; not run
here. `fashion_mnist/function_matching.py` shows the scheme in minutes.
"""

from kdjax.data import Crop
from kdjax.experiment import Experiment, Phase
from kdjax.objectives import method
from kdjax.schedules import Cosine, WarmUp, epochs, steps
from kdjax.tasks.classification import Classification, Classifier, Views
from kdjax.training.optimizers import AdamW


def experiment(name: str = "function_matching") -> Experiment:
    # The released weight decay is not multiplied by the learning rate, as AdamW's is: 3e-4 / 0.03.
    optimizer = AdamW(
        learning_rate=0.03 * (WarmUp(length=steps(5000)) * Cosine()), weight_decay=1e-2, decay_vectors=False, clip=1.0
    )
    views = Views(flip=True, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), mixup=1.0)
    return Experiment(
        name="imagenet-function-matching",
        data=Classification(
            name="imagenet2012", image_size=224, crop=Crop(), batch_size=4096, eval_batch_size=4096, views=views
        ),
        phases=(
            Phase(
                name="teacher", network=Classifier(name="resnet152"), mix=False, duration=epochs(90), optimizer=optimizer
            ),
            Phase(
                name="student", network=Classifier(name="resnet50"), teacher="teacher", objective=method(name).objective,
                duration=epochs(1200), optimizer=optimizer, precision="bfloat16", teacher_precision="bfloat16",
            ),
        ),
        log_every=100,
    )  # fmt: skip
