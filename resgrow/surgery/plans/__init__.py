"""The structure of any model as data, and models of the original constructor brought into it."""

from resgrow.surgery.plans.describe import describe
from resgrow.surgery.plans.fit import fit
from resgrow.surgery.plans.plan import Plan, from_json, stored_tensors, to_json
from resgrow.surgery.plans.version1 import upgraded

__all__ = ["Plan", "describe", "fit", "from_json", "stored_tensors", "to_json", "upgraded"]
