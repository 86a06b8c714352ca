"""What makes a run of the random two-layer model take a second."""

SMALL = (
    "model=tiny_llama",
    "sequence.tasks=[mini_city,mini_topic]",
    "data.train_examples=8",
    "data.test_examples=4",
    "scorer.examples=4",
    "paraphrases.count=3",
    "evaluator.max_new_tokens=4",
    "data.max_input_tokens=512",  # the tiny tokenizer has one token a byte
    "trainer.epochs=1",
    "engine.device=cpu",
)
