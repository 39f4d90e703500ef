"""Self-distillation of a single-image encoder from unlabelled video.

Data flows one way, and each arrow is a file or an object that can be looked at:

    video files --extract--> frame stores --clips--> K frames --views--> uint8 crops --photometric--> pixels
    pixels --method--> losses --trainer--> optimiser, teacher --checkpoint--> run directory --> encoder/

Files in this folder are commands: they parse, call one function and print. What they call lies in rooms, of which each
uses its own and those before it (tests/training/test_rooms.py):

    common       processes as one, signals, caches, command lines
    data         from videos to batches: frame stores, clips, views, colours
    nn           parts of networks and losses
    models       encoders of any origin, as subjects of evaluation
    methods      what is learnt, one file each
    recipes      every setting of a run; the recipes that are given
    engine       one run: plan, loop, log, checkpoints, what it leaves for the next
    evaluation   protocols, one file each, on frozen or fine-tuned encoders
    reporting    pages and pictures for people
    studies      rows that differ in one choice
    releases     weights with a card
"""
