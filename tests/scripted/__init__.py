"""Stand-ins with known answers: tiny models, engines that draw by rule, roles that write down what they are asked."""
