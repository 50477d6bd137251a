/** Between how many replicas a pool may have. */
export interface Limits {
  minimum: number;
  maximum: number;
}

export class Wishes {
  constructor(changed: () => void);
  dispose(): void;
  over(pool: string, limits: Limits): Limits;
  want(pool: string, limits: Limits, order: () => Promise<unknown>): Promise<void>;
}
