"""python -m resgrow.experiments.architecture NAME --work DIR"""

from resgrow.experiments.architecture.command import main

main()
