from tools.init.init import add_parser as add_parser
