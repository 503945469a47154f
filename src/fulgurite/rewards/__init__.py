"""How answers are judged. Nothing here imports torch: graders run in workers of their own."""
