import logging
logging.basicConfig(level=logging.DEBUG)

# Initialize system with debug logging
tracking_system = ExperimentTrackingSystem(config)
