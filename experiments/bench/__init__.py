"""What `sapo bench` does: ours against plain Transformers and PEFT, measured on this machine."""
