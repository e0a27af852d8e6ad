"""What sessions have at once: imported before they begin, and shared by all of them."""

# ruff: noqa: F401 - imported to be there
from __future__ import annotations

import bisect
import collections
import copy
import csv
import dataclasses
import datetime
import decimal
import difflib
import enum
import fractions
import functools
import hashlib
import heapq
import html
import itertools
import math
import operator
import pprint
import random
import re
import statistics
import string
import textwrap
import time
import typing
import unicodedata
from typing import Final

__all__ = ["HIDDEN"]

HIDDEN: Final = ("ctypes", "_ctypes")
"""What the first process needed and code must do without: to import it again is refused."""
