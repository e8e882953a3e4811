import torch
from hypothesis import settings

settings.register_profile("unhurried", deadline=None)  # the machine may be shared
settings.load_profile("unhurried")
torch.set_num_threads(1)  # tiny tensors: threads would only wait for each other
