"""A Triton backend that compiles nothing, so that vLLM runs its GPU model runner on a processor. For tests alone.

vLLM's wheel for processors takes Triton as missing unless there is a backend called "cpu". This one only answers to
that name: with `TRITON_INTERPRET=1` the kernels are run by Triton's interpreter, which never asks a backend to compile.
`rig.runner_environment` puts a copy of this folder, with the metadata by which Triton and vLLM find it, on a path.
"""
