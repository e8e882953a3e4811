import torch
from hypothesis import settings

settings.register_profile("no_deadline", deadline=None)  # the machine can be shared
settings.load_profile("no_deadline")
torch.set_num_threads(1)  # tiny tensors: more threads are slower
