"""kdjax compare language/dolly --data.tokenizer gpt2 --phases.teacher.network.weights XL --phases.before.network.weights gpt2

GPT-2 of 1.5 billion weights teaches the smallest one to follow the instructions of databricks-dolly-15k, as the released codes
of MiniLLM and DistiLLM have it. `XL` and `gpt2` above are folders of Hugging Face with config.json, model.safetensors and
tokenizer.json; `dolly`, in the folder that the command is given in, has train.jsonl and test.jsonl with "instruction", "context"
and "response" a line. Of the first 1,000 are held out, as there. Methods: `--methods labels forward_kl skew_kl distillm gkd`.

The teacher learns for 10 epochs with learning rate 5e-5, the student for 3 with 5e-4, and then for 20 by each method with 5e-4,
a cosine to 0 without warm-up; batch 32, AdamW with weight decay 0.01, clipped at 1, 512 tokens of which 256 may be the prompt's.
The codes have 2 to 8 rows on each of so many GPUs as there are. MiniLLM (`kdjax distill language/dolly --method minillm`) has a
rate of 5e-6 for 5,000 steps, and there a term of plain text from OpenWebText, which kdjax has not. Not run here.

Published ROUGE-L on the test part, not reproduced here: MiniLLM 24.6 in its paper, 23.8 in runs of DistiLLM's author. Who
printed it: published.json, one folder up. The report has ROUGE-L of a few prompts, of one response each; theirs is of all, of
five.
"""

import dataclasses

from kdjax.experiment import Experiment, Phase
from kdjax.experiment.schemes import student_phases
from kdjax.objectives import ForwardKL, SkewKL
from kdjax.schedules import Constant, Cosine, WarmUp, epochs, steps
from kdjax.tasks.language import Language, LanguageNetwork
from kdjax.training.optimizers import AdamW

OBJECTIVES = {"forward_kl": ForwardKL(), "skew_kl": SkewKL(alpha=0.1)}
OF_MINILLM = {"duration": steps(5000), "learning_rate": WarmUp(length=steps(100)) * Constant(5e-6)}


def experiment(name: str = "distillm") -> Experiment:
    adamw = lambda rate: AdamW(learning_rate=rate, weight_decay=0.01, decay_vectors=False, clip=1.0)
    before = Phase(
        name="before", network=LanguageNetwork(name="gpt2"), duration=epochs(3), optimizer=adamw(5e-4 * Cosine())
    )
    student = dataclasses.replace(before, name="student", start="before", teacher="teacher", duration=epochs(20))
    if name == "minillm":
        student = dataclasses.replace(
            student, duration=OF_MINILLM["duration"], optimizer=adamw(OF_MINILLM["learning_rate"])
        )
    return Experiment(
        name="dolly",
        data=Language(name="dolly", length=512, prompt=256, batch_size=32, validation=1000),
        phases=(
            Phase(
                name="teacher", network=LanguageNetwork(name="gpt2_xl"), duration=epochs(10),
                optimizer=adamw(5e-5 * Cosine()),
            ),
            before,
            *student_phases(name, student, objective=OBJECTIVES.get(name)),
        ),
        log_every=50,
    )  # fmt: skip
