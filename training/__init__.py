"""Self-distillation of a single-image encoder from unlabelled video.

Data flows one way, and each arrow is a file or an object that can be looked at:

video files --extract--> frame stores --clips--> K frames --views--> uint8 crops --photometric--> pixels
pixels --method--> losses --trainer--> optimiser, teacher --checkpoint--> run directory --> encoder/
"""
