"""python -m resgrow.experiments.controller NAME --out DIR"""

from resgrow.experiments.controller.command import main

main()
