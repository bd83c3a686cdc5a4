"""Methods from language-model distillation."""
