"""LightningModules: one per method. They compute losses and take updates; they neither sample nor reward."""
