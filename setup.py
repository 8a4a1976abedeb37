from setuptools import setup

setup(cffi_modules=["pygpt/_build.py:ffi"])
