"""kdjax compare text/glue --data.tokenizer bert --phases.teacher.network.weights bert --phases.student.network.weights distilbert

BERT teaches DistilBERT on SST-2 of GLUE, both fine-tuned from published weights: `bert` and `distilbert` above are folders of
Hugging Face with config.json, model.safetensors and tokenizer.json. 3 epochs of batch 32, AdamW with learning rate 3e-5, warm-up
over a tenth and a straight line to 0, weight decay 0.01 but on biases and norms, clipped at 1, 128 tokens. Needs
`kdjax data prepare glue/sst2` and the package tokenizers; `--data.name glue/mnli` and the like are the other sets.

A student may begin with blocks of its teacher: `--phases.student.network.name tinybert_l6 --phases.student.network.weights bert
--phases.student.network.layers 0 2 4 6 8 10`. Without folders both begin fresh, which no accuracy comes of.

Published accuracy on the development set, not reproduced here: SST-2 BERT 92.7, DistilBERT 91.3; MNLI 84.7, 82.1; QNLI 91.8,
89.2; RTE 69.3, 59.9, all fine-tuned on labels. Who printed it: published.json, one folder up.
"""

from kdjax.experiment import Experiment, Phase
from kdjax.experiment.schemes import student_phases
from kdjax.objectives import KD, CrossEntropy
from kdjax.schedules import Linear, WarmUp, epochs, percent
from kdjax.tasks.text import Text, TextNetwork
from kdjax.training.optimizers import AdamW

OBJECTIVES = {"kd": 0.5 * CrossEntropy() + 0.5 * KD(temperature=2.0)}


def experiment(name: str = "kd") -> Experiment:
    rate = 3e-5 * (WarmUp(length=percent(10)) * Linear(start=1.0, end=0.0, delay=percent(10), length=percent(90)))
    adamw = AdamW(learning_rate=rate, weight_decay=0.01, decay_vectors=False, clip=1.0)
    teacher = Phase(name="teacher", network=TextNetwork(name="bert_base"), duration=epochs(3), optimizer=adamw)
    student = Phase(network=TextNetwork(name="distilbert"), teacher="teacher", duration=epochs(3), optimizer=adamw)
    return Experiment(
        name="glue",
        data=Text(name="glue/sst2", tokenizer="words:30522"),
        phases=(teacher, *student_phases(name, student, objective=OBJECTIVES.get(name))),
        log_every=50,
    )
