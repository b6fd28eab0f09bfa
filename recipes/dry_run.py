"""Two CPU processes stand in for the GPUs of a sharded run: does the configuration work, before a cluster is paid for?

    accelerate launch --config_file recipes/arm_7b_fsdp.yaml --num_processes 2 --mixed_precision no \
      recipes/dry_run.py train arm --model TINY --data PAIRS.jsonl --out guides/dry

accelerate shards nothing between processes on CPUs; it would leave the sharding out without a word, and trimtab then
refuses to train. Here it is told that they are of the kind that it shards for. The rest of the command line is
trimtab's. Written for accelerate 1.15. For DeepSpeed, set DS_ACCELERATOR=cpu.
"""

import os
import sys
from importlib.metadata import entry_points

os.environ["CUDA_VISIBLE_DEVICES"] = ""

from accelerate import PartialState
from accelerate.utils import DistributedType

_join = PartialState.__init__


def join_and_pose(self, *args, **options):
    _join(self, *args, **options)
    if self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.MULTI_GPU


PartialState.__init__ = join_and_pose

(command,) = entry_points(group="console_scripts", name="trimtab")
sys.exit(command.load()())
