import { type Expr, expr as e } from '@tilegrad/core'

/**
 * What decay leaves of p: all of p but its share `decay`. Cautious decay (Chen et al. 2025) leaves those numbers alone that the
 * step, which is subtracted, takes away from 0.
 */
export const kept = (p: Expr, step: Expr, decay: Expr, cautious: boolean): Expr =>
  e.sub(p, e.mul(cautious ? e.select(e.ge(e.mul(p, step), 0), decay, 0) : decay, p))
