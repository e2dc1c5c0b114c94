"""What a clip is, where it comes from, how clips are split, and what is cached of them."""
