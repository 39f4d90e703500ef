"""Where other projects take an encoder: one file a stack, each imported by its own name, and the stack only by it.

| module | what it gives |
|---|---|
| `lerobot` | ACT and Diffusion policies of LeRobot that see through an encoder |
| `prismatic` | an entry in the registry of vision backbones of OpenVLA and Prismatic |
| `embed_image` | images to tokens of a language model: openpi, pi0, SmolVLA |
| `groot` | the features that GR00T's action head is trained on |
"""
